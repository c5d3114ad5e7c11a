/* Serves a userfaultfd from C: serve MANIFEST MEMORY [firecracker]
 *
 * A child process stands in for the VMM: it maps memory, opens a userfaultfd, and sends it over a
 * Unix socket, with its regions or with the message that Firecracker would send. The parent serves
 * it from the memory file. The child compares every byte with the file; only free frames may be
 * zeros instead. The exit status is 0 if all was right. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <kaleidoscope.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

static void check(int is_right, const char *what) {
  if (!is_right) perror(what), exit(1);
}

static void require(kaleidoscope_status status, const char *what) {
  if (status == KALEIDOSCOPE_STATUS_OK) return;
  fprintf(stderr, "%s: status %d: %s\n", what, (int)status, kaleidoscope_last_error());
  exit(1);
}

static int vmm(int socket, const char *memory, const kaleidoscope_map *map, int as_firecracker) {
  uint32_t frames;
  require(kaleidoscope_map_frames(map, &frames), "kaleidoscope_map_frames");
  size_t bytes = (size_t)frames * PAGE;
  int file = open(memory, O_RDONLY | O_CLOEXEC);
  const char *expected = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, file, 0);
  char *ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(expected != MAP_FAILED && ram != MAP_FAILED, "mmap");
  int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
  check(uffd >= 0, "userfaultfd");
  struct uffdio_api api = {.api = UFFD_API};
  check(ioctl(uffd, UFFDIO_API, &api) == 0, "UFFDIO_API");
  struct uffdio_register watch = {.range = {.start = (uintptr_t)ram, .len = bytes},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  check(ioctl(uffd, UFFDIO_REGISTER, &watch) == 0, "UFFDIO_REGISTER");

  kaleidoscope_region region = {.address = (uintptr_t)ram, .bytes = bytes, .offset = 0};
  char text[200];
  int length = snprintf(text, sizeof text,
      "[{\"base_host_virt_addr\":%ju,\"size\":%zu,\"offset\":0,\"page_size\":4096}]",
      (uintmax_t)region.address, bytes);
  struct iovec message = {as_firecracker ? (void *)text : (void *)&region,
                          as_firecracker ? (size_t)length : sizeof region};
  union { char bytes[CMSG_SPACE(sizeof uffd)]; struct cmsghdr align; } control = {{0}};
  struct msghdr header = {.msg_iov = &message, .msg_iovlen = 1,
                          .msg_control = &control, .msg_controllen = sizeof control};
  *CMSG_FIRSTHDR(&header) = (struct cmsghdr){
      .cmsg_len = CMSG_LEN(sizeof uffd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
  memcpy(CMSG_DATA(CMSG_FIRSTHDR(&header)), &uffd, sizeof uffd);
  check(sendmsg(socket, &header, 0) == (ssize_t)message.iov_len, "sendmsg");

  static const char zeros[PAGE];
  for (uint32_t n = 0; n < frames; n++) {
    uint32_t frame = frames - 1 - n;
    const char *page = ram + (size_t)frame * PAGE;
    if (memcmp(page, expected + (size_t)frame * PAGE, PAGE) == 0) continue;
    kaleidoscope_color color = KALEIDOSCOPE_COLOR_UNKNOWN;
    kaleidoscope_map_color(map, frame, &color); /* Memory without holes: frame numbers agree. */
    if (color == KALEIDOSCOPE_COLOR_FREE && memcmp(page, zeros, PAGE) == 0) continue;
    return fprintf(stderr, "frame %u is wrong\n", frame), 1;
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  int as_firecracker = argc > 3, ends[2], status = 1;
  kaleidoscope_map *map = NULL;
  require(kaleidoscope_map_open(argv[1], argv[2], &map), "kaleidoscope_map_open");
  check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
  pid_t child = fork();
  check(child >= 0, "fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* Nothing else ends it while it waits for a page. */
    _exit(vmm(ends[1], argv[2], map, as_firecracker));
  }
  close(ends[1]);

  char bytes[4096];
  struct iovec message = {bytes, sizeof bytes};
  union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
  struct msghdr header = {.msg_iov = &message, .msg_iovlen = 1,
                          .msg_control = &control, .msg_controllen = sizeof control};
  ssize_t length = recvmsg(ends[0], &header, MSG_CMSG_CLOEXEC);
  kaleidoscope_region region;
  check(length >= (ssize_t)sizeof region && CMSG_FIRSTHDR(&header) != NULL, "recvmsg");
  memcpy(&region, bytes, sizeof region);
  kaleidoscope_session_options options = {.size = sizeof options, .map = map, .threads = 1};
  memcpy(&options.userfaultfd, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof(int));
  options.process = (int)syscall(SYS_pidfd_open, child, 0);
  check(options.process >= 0, "pidfd_open");
  if (as_firecracker) options.firecracker = (uint8_t *)bytes, options.firecracker_bytes = length;
  else options.regions = &region, options.region_count = 1;

  kaleidoscope_session *session = NULL;
  kaleidoscope_status served = kaleidoscope_session_start(&options, &session);
  if (served == KALEIDOSCOPE_STATUS_OK) served = kaleidoscope_session_wait(session);
  if (served != KALEIDOSCOPE_STATUS_OK) kill(child, SIGKILL); /* It would wait for its pages. */
  require(served, "serving the userfaultfd");
  kaleidoscope_statistics counts;
  require(kaleidoscope_session_statistics(session, &counts, sizeof counts), "statistics");
  check(waitpid(child, &status, 0) == child, "waitpid");
  kaleidoscope_session_free(session), kaleidoscope_map_free(map);
  printf("%ju frames resident, %ju faults\n", (uintmax_t)counts.resident, (uintmax_t)counts.faults);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 && counts.faults > 0 ? 0 : 1;
}
