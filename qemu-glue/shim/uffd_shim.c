/* Preloaded into QEMU. Opens a userfaultfd, which is bound to QEMU's own address space, and hands it to the process
 * that holds the other end of the socket whose number is in $EPOCHGATE_UFFD_FD. That process does all the rest.
 *
 * The message is one int: 0 with the descriptor beside it (SCM_RIGHTS), or the errno that says why there is none. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW 0xAA00 /* _IO(0xAA, 0x00), linux/userfaultfd.h */
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* By privilege, by the device file, or for faults in user mode only: asynchronous write protection is lifted inside the
 * kernel, so nothing is ever delivered to user space and the restriction does not matter. */
static int open_userfaultfd(void) {
  const int flags = O_CLOEXEC | O_NONBLOCK;
  int uffd = (int)syscall(SYS_userfaultfd, flags);
  if (uffd >= 0) return uffd;
  int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device >= 0) {
    uffd = ioctl(device, USERFAULTFD_IOC_NEW, flags);
    close(device);
    if (uffd >= 0) return uffd;
  }
  return (int)syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY);
}

/* Whether this process runs QEMU, and not yet a script that will start it. */
static int is_qemu(void) {
  char path[4096];
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  const char *name = strrchr(path, '/');
  return name && (strstr(name, "qemu") || strstr(name, "kvm"));
}

__attribute__((constructor)) static void hand_over(void) {
  const char *number = getenv("EPOCHGATE_UFFD_FD");
  if (!number || !is_qemu()) return;
  int channel = atoi(number);
  /* Programs that QEMU starts are none of our business. */
  unsetenv("EPOCHGATE_UFFD_FD");
  unsetenv("LD_PRELOAD");

  int uffd = open_userfaultfd();
  int reason = uffd < 0 ? errno : 0;
  char control[CMSG_SPACE(sizeof uffd)] = {0};
  struct iovec payload = {&reason, sizeof reason};
  struct msghdr message = {.msg_iov = &payload, .msg_iovlen = 1};
  if (uffd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof uffd);
    memcpy(CMSG_DATA(header), &uffd, sizeof uffd);
  }
  /* If this fails, the other side sees the end of the socket without a message and knows. */
  (void)!sendmsg(channel, &message, MSG_NOSIGNAL);
  if (uffd >= 0) close(uffd);
  close(channel);
}
