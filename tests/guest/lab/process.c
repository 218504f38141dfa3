/* Processes: too many of them, dead ones, spinning ones, ones that crash, and ones that talk to each other. */
#include "tool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int forkbomb(int argc, char **argv)
{
	(void)argc, (void)argv;
	for (;;)
		if (fork() < 0)
			sched_yield();
}

/* zombies PER_SECOND: children that end and that nobody waits for, until there can be no more. */
int zombies(int argc, char **argv)
{
	long rate = number(argc, argv, 1, 200);
	for (;;) {
		pid_t child = fork();
		if (child == 0)
			_exit(0);
		sleep_us(1000000 / rate);
	}
}

static atomic_flag lock = ATOMIC_FLAG_INIT;

static void *spinner(void *unused)
{
	(void)unused;
	while (atomic_flag_test_and_set(&lock))
		;
	return NULL; /* The owner ends without giving the lock back. */
}

/* spin THREADS: all want a lock whose owner is gone. */
int spin(int argc, char **argv)
{
	long threads = number(argc, argv, 1, 4);
	for (long i = 0; i <= threads; i++) {
		pthread_t thread;
		pthread_create(&thread, NULL, spinner, NULL);
	}
	for (;;)
		pause();
}

/* crash MS: a service that reads its state for a while and then follows a pointer that is none. */
int crash(int argc, char **argv)
{
	uint64_t until = now_us() + number(argc, argv, 1, 200) * 1000, state = 1;
	volatile uint64_t sum = 0;
	char *heap = malloc(8 << 20);
	while (now_us() < until) {
		memset(heap + (next_random(&state) & 0x7fffff & ~4095UL), 1, 4096);
		sum += heap[next_random(&state) & 0x7fffff];
	}
	*(volatile int *)(sum & 0) = 1;
	return 0;
}

/* pipes PAIRS MICROSECONDS: pairs of processes that throw a byte to and fro, with such a pause. */
int pipes(int argc, char **argv)
{
	long pairs = number(argc, argv, 1, 4), wait = number(argc, argv, 2, 0);
	for (long i = 0; i < pairs; i++) {
		int there[2], back[2];
		char byte = 0;
		if (pipe(there) || pipe(back))
			return 1;
		if (fork() == 0)
			for (;;)
				if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1)
					_exit(0);
		if (fork() == 0)
			for (;;) {
				if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
					_exit(0);
				if (wait)
					sleep_us(wait);
			}
	}
	for (;;)
		pause();
}
