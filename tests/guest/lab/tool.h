/* The lab's program inside the guest: what no package does, each a command of its own. Built static. */
#ifndef TOOL_H
#define TOOL_H

#include <stdint.h>

int server(int argc, char **argv);   /* server.c */
int beat(int argc, char **argv);     /* server.c */
int sink(int argc, char **argv);     /* server.c */
int leak(int argc, char **argv);     /* memory.c */
int touch(int argc, char **argv);    /* memory.c */
int forkbomb(int argc, char **argv); /* process.c */
int zombies(int argc, char **argv);  /* process.c */
int spin(int argc, char **argv);     /* process.c */
int crash(int argc, char **argv);    /* process.c */
int pipes(int argc, char **argv);    /* process.c */
int sql(int argc, char **argv);      /* text.c */
int logger(int argc, char **argv);   /* text.c */

/* main.c */
uint64_t now_us(void);
void sleep_us(uint64_t us);
uint64_t next_random(uint64_t *state);
/* The n-th argument as a number, or a default. */
long number(int argc, char **argv, int n, long otherwise);
/* A listening TCP socket on all addresses; ends the program if there can't be one. */
int listen_on(long port);

#endif
