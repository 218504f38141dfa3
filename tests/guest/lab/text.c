/* Text at a rate: statements for sqlite3, lines for a log. */
#include "tool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Waits until `done` of them are due at `rate` a second; 0: no pause. */
static void pace(uint64_t begun, uint64_t done, uint64_t rate)
{
	uint64_t due = rate ? begun + done * 1000000 / rate : 0, now = now_us();
	fflush(stdout);
	if (due > now)
		sleep_us(due - now);
}

/* sql write|read SEED PER_SECOND ROWS: transactions or queries over a table of so many rows, for ever. */
int sql(int argc, char **argv)
{
	int writes = argc < 2 || strcmp(argv[1], "read");
	uint64_t state = number(argc, argv, 2, 1), rate = number(argc, argv, 3, 20), rows = number(argc, argv, 4, 20000);
	uint64_t begun, done = 0;
	printf("PRAGMA journal_mode=%s; PRAGMA synchronous=FULL; PRAGMA cache_size=-4000;\n", state & 1 ? "WAL" : "DELETE");
	printf("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v INTEGER, s TEXT);\n");
	printf("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<%llu) INSERT OR IGNORE INTO t SELECT x, x*7919%%10007, "
	       "hex(randomblob(40)) FROM c;\n", (unsigned long long)rows);
	printf("CREATE INDEX IF NOT EXISTS tv ON t(v);\n");
	begun = now_us();
	for (;;) {
		unsigned long long a = next_random(&state) % rows + 1, b = next_random(&state) % 10007;
		if (writes) {
			printf("BEGIN;");
			for (int i = 0; i < 5; i++)
				printf("UPDATE t SET v=%llu, s=hex(randomblob(40)) WHERE id=%llu;", b, (a + i * 997) % rows + 1);
			printf("COMMIT;\n");
		} else if (next_random(&state) % 8) {
			printf("SELECT count(*), max(s) FROM t WHERE v BETWEEN %llu AND %llu;\n", b, b + 20);
		} else {
			printf("SELECT v%%10, sum(length(s)) FROM t WHERE id>%llu GROUP BY 1;\n", a);
		}
		if (ferror(stdout))
			return 1;
		pace(begun, ++done, rate);
	}
}

/* logger PER_SECOND: lines as a service writes them; 0: as fast as it goes. */
int logger(int argc, char **argv)
{
	uint64_t rate = number(argc, argv, 1, 100), state = 7, begun = now_us(), done = 0;
	for (;;) {
		printf("2026-01-01T00:00:00.%06llu service[42]: request %016llx from 10.0.%llu.%llu took %llu ms\n",
		       (unsigned long long)(now_us() % 1000000), (unsigned long long)next_random(&state),
		       (unsigned long long)(next_random(&state) % 256), (unsigned long long)(next_random(&state) % 256),
		       (unsigned long long)(next_random(&state) % 900));
		done++;
		if (ferror(stdout)) {
			clearerr(stdout);
			sleep_us(1000);
		}
		if (rate || done % 64 == 0)
			pace(begun, done, rate);
	}
}
