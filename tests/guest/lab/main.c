/* Chooses the command, and holds what several of them need. */
#include "tool.h"

#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

uint64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void sleep_us(uint64_t us)
{
	struct timespec t = {us / 1000000, us % 1000000 * 1000};
	nanosleep(&t, NULL);
}

uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

long number(int argc, char **argv, int n, long otherwise)
{
	return n < argc ? atol(argv[n]) : otherwise;
}

int listen_on(long port)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&here, sizeof here) || listen(fd, 64)) {
		perror("listen");
		exit(1);
	}
	return fd;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(int, char **);
	} commands[] = {
		{"server", server}, {"beat", beat},	{"sink", sink},
		{"leak", leak},	    {"touch", touch},	{"forkbomb", forkbomb},
		{"zombies", zombies}, {"spin", spin},	{"crash", crash},
		{"pipes", pipes},   {"sql", sql},	{"logger", logger},
	};
	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof *commands; i++)
		if (!strcmp(argv[1], commands[i].name)) {
			/* So that killall finds it by what it does. */
			prctl(PR_SET_NAME, argv[1]);
			return commands[i].run(argc - 1, argv + 1);
		}
	fprintf(stderr, "tool: no such command\n");
	return 2;
}
