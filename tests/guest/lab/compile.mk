# Real C for the load `compile`: the single-file libraries of Debian's libstb-dev, one object each.
OPT = 1
SOURCES = $(wildcard *.c)
all: $(SOURCES:.c=.o)
%.o: %.c
	gcc -O$(OPT) -w -I/usr/include/stb -c -o $@ $<
clean:
	rm -f *.o
.PHONY: all clean
