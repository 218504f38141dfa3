/* The lab's small services. `server` is the application that faults are put into: a pool of threads that answer
 * HTTP requests, with a journal on the disk. SIGUSR1 brings the bug out that deadlocks it, SIGUSR2 the one that lets
 * it spin on a lock that nobody gives back. `beat` answers as long as the kernel schedules at all. `sink` takes uploads. */
#include "tool.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define JOURNAL (16 << 20)

static pthread_mutex_t accounts = PTHREAD_MUTEX_INITIALIZER, journal = PTHREAD_MUTEX_INITIALIZER;
static volatile sig_atomic_t deadlocks, spins;
static atomic_flag turn = ATOMIC_FLAG_INIT;
static atomic_uint served;
static int listener, journal_fd = -1;

static void on_signal(int signal)
{
	if (signal == SIGUSR1)
		deadlocks = 1;
	else
		spins = 1;
}

static int answer(int fd, int status, const char *body)
{
	char text[4096];
	int length = snprintf(text, sizeof text, "HTTP/1.1 %d %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
			      status, status == 200 ? "OK" : "Error", strlen(body), body);
	return write(fd, text, length) == length ? 0 : -1;
}

/* Some arithmetic over a table, and a line in the journal that is on the disk before the answer. */
static int work(long rounds)
{
	static unsigned table[65536];
	unsigned sum = 0;
	char line[64];
	int length, good;
	for (long i = 0; i < rounds * 1000; i++)
		sum += table[(sum + i) & 65535]++;
	pthread_mutex_lock(&journal);
	length = snprintf(line, sizeof line, "%u %u\n", atomic_load(&served), sum);
	if (lseek(journal_fd, 0, SEEK_CUR) > JOURNAL - 4096)
		lseek(journal_fd, 0, SEEK_SET);
	good = write(journal_fd, line, length) == length && fdatasync(journal_fd) == 0;
	pthread_mutex_unlock(&journal);
	return good;
}

/* Two threads that take the same locks in another order. */
static void locks(void)
{
	if (deadlocks) {
		int first = atomic_load(&served) & 1;
		pthread_mutex_lock(first ? &accounts : &journal);
		sleep_us(50000);
		pthread_mutex_lock(first ? &journal : &accounts);
	} else {
		pthread_mutex_lock(&accounts);
	}
	if (deadlocks)
		pthread_mutex_unlock(&journal);
	pthread_mutex_unlock(&accounts);
}

static void *worker(void *unused)
{
	(void)unused;
	for (;;) {
		char request[2048];
		int fd = accept(listener, NULL, NULL);
		ssize_t got;
		if (fd < 0)
			continue;
		got = read(fd, request, sizeof request - 1);
		if (got > 0) {
			request[got] = 0;
			atomic_fetch_add(&served, 1);
			if (spins)
				while (atomic_flag_test_and_set(&turn))
					;
			else
				locks();
			if (!strncmp(request, "GET /work", 9)) {
				char *count = strchr(request, '?');
				int good = work(count ? atol(count + 1) : 10);
				answer(fd, good ? 200 : 500, good ? "done\n" : "no journal\n");
			} else {
				answer(fd, 200, "alive\n");
			}
		}
		close(fd);
	}
	return NULL;
}

/* server PORT THREADS JOURNAL */
int server(int argc, char **argv)
{
	long threads = number(argc, argv, 2, 4);
	listener = listen_on(number(argc, argv, 1, 8080));
	if (argc > 3)
		journal_fd = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (journal_fd < 0 || posix_fallocate(journal_fd, 0, JOURNAL))
		return 1; /* A service that has no room for its journal does not start. */
	signal(SIGUSR1, on_signal);
	signal(SIGUSR2, on_signal);
	for (long i = 0; i < threads; i++) {
		pthread_t thread;
		pthread_create(&thread, NULL, worker, NULL);
	}
	for (;;)
		pause();
}

/* beat PORT */
int beat(int argc, char **argv)
{
	int socket = listen_on(number(argc, argv, 1, 7000));
	for (;;) {
		char request[512];
		int fd = accept(socket, NULL, NULL);
		if (fd < 0)
			continue;
		if (read(fd, request, sizeof request) > 0)
			answer(fd, 200, "beat\n");
		close(fd);
	}
}

/* sink PORT [FILE]: takes what is sent, and keeps up to 64 MiB of it. */
int sink(int argc, char **argv)
{
	static char buffer[65536];
	int socket = listen_on(number(argc, argv, 1, 9000));
	int file = argc > 2 ? open(argv[2], O_WRONLY | O_CREAT, 0644) : -1;
	for (;;) {
		int fd = accept(socket, NULL, NULL);
		ssize_t got;
		while (fd >= 0 && (got = read(fd, buffer, sizeof buffer)) > 0) {
			if (file < 0)
				continue;
			if (lseek(file, 0, SEEK_CUR) > 64 << 20)
				lseek(file, 0, SEEK_SET);
			if (write(file, buffer, got) < 0)
				sleep_us(10000);
		}
		if (fd >= 0)
			close(fd);
	}
}
