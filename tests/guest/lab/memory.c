/* Memory in honest use, in too much use, and leaked. */
#include "tool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* leak KIB_PER_SECOND: takes memory at this rate, writes it and never gives it back. */
int leak(int argc, char **argv)
{
	long rate = number(argc, argv, 1, 4096);
	uint64_t state = now_us(), begun = now_us(), taken = 0;
	for (;;) {
		uint64_t due = (now_us() - begun) * rate / 1000000;
		while (taken < due) {
			uint64_t *chunk = malloc(65536);
			if (!chunk)
				abort();
			for (int i = 0; i < 8192; i++)
				chunk[i] = next_random(&state);
			taken += 64;
		}
		sleep_us(50000);
	}
}

/* touch MIB random|stream PAGES_PER_SECOND: a working set of this size that is written for ever; 0: as fast as it goes. */
int touch(int argc, char **argv)
{
	uint64_t bytes = (uint64_t)number(argc, argv, 1, 64) << 20, pages = bytes >> 12;
	int stream = argc > 2 && !strcmp(argv[2], "stream");
	uint64_t rate = number(argc, argv, 3, 0), state = now_us(), begun = now_us(), done = 0;
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	for (;; done++) {
		uint64_t page = stream ? done % pages : next_random(&state) % pages;
		uint64_t *words = (uint64_t *)(memory + (page << 12));
		for (int i = 0; i < (stream ? 512 : 8); i++)
			words[i] += state + done;
		if (rate && done % 16 == 15) {
			uint64_t due = begun + done * 1000000 / rate, now = now_us();
			if (due > now)
				sleep_us(due - now);
		}
	}
}
