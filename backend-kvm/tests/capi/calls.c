/* Calls of the C interface with right and with wrong arguments: calls MANIFEST MEMORY OTHER PIPE
 *
 * MANIFEST and MEMORY are of 1024 frames of RAM from frame 0 on, and of 1024 frames from frame
 * 0x100000 on; frame 5 is free, all others are of the kernel's text. OTHER is a memory file of
 * another guest, PIPE a named pipe. Prints the first wrong answer and exits with 1. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <kaleidoscope.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HIGH 0x100000u

/* What callers were built with. */
_Static_assert(sizeof(kaleidoscope_region) == 24, "region");
_Static_assert(sizeof(kaleidoscope_planned_frame) == 16, "planned frame");
_Static_assert(sizeof(kaleidoscope_session_options) == 80, "options");
_Static_assert(sizeof(kaleidoscope_statistics) == 80, "statistics");
_Static_assert(sizeof(kaleidoscope_color) == 4 && sizeof(kaleidoscope_status) == 4, "enums");

#define EXPECT(condition)                                                             \
  do {                                                                                \
    if (!(condition)) {                                                               \
      printf("line %d: %s; last error: %s\n", __LINE__, #condition, kaleidoscope_last_error()); \
      exit(1);                                                                        \
    }                                                                                 \
  } while (0)
#define OK(call) EXPECT((call) == KALEIDOSCOPE_STATUS_OK)
/* The call fails so, and the message has this word. */
#define FAILS(call, status, word)                  \
  do {                                             \
    EXPECT((call) == KALEIDOSCOPE_STATUS_##status); \
    EXPECT(strstr(kaleidoscope_last_error(), word)); \
  } while (0)

#define PLAN(...) kaleidoscope_policy_plan(__VA_ARGS__, &count)

static void plans(const kaleidoscope_map *map) {
  kaleidoscope_policy *policy = NULL;
  kaleidoscope_planned_frame frames[600];
  uint8_t present[256] = {0};
  size_t count = 0;
  const uint32_t read = KALEIDOSCOPE_ACCESS_READ;

  FAILS(kaleidoscope_policy_new(NULL, "demand", &policy), INVALID_ARGUMENT, "map");
  FAILS(kaleidoscope_policy_new(map, "demand", NULL), INVALID_ARGUMENT, "policy");
  FAILS(kaleidoscope_policy_new(map, "none", &policy), INVALID_ARGUMENT, "none");
  FAILS(kaleidoscope_policy_new(map, "\xff", &policy), INVALID_ARGUMENT, "UTF-8");
  FAILS(kaleidoscope_policy_new(map, "blind-next-0", &policy), INVALID_ARGUMENT, "N must be");
  FAILS(kaleidoscope_policy_new(map, "blind-next-", &policy), INVALID_ARGUMENT, "N must be");
  EXPECT(policy == NULL);
  const char *names[] = {NULL, "predicted", "region", "demand", "blind-next-4"};
  for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
    OK(kaleidoscope_policy_new(map, names[n], &policy));
    OK(PLAN(policy, HIGH + 9, read, NULL, 0, frames, 600));
    EXPECT(count >= 1 && count <= 513 && frames[0].gfn == HIGH + 9);
    EXPECT(frames[0].action == KALEIDOSCOPE_ACTION_FETCH);
    kaleidoscope_policy_free(policy);
  }

  OK(kaleidoscope_policy_new(map, "blind-aligned-16", &policy));
  OK(PLAN(policy, HIGH + 18, read, NULL, 0, frames, 600));
  EXPECT(count == 16 && frames[0].gfn == HIGH + 18 && frames[1].gfn == HIGH + 16);
  EXPECT(frames[2].gfn == HIGH + 17 && frames[3].gfn == HIGH + 19 && frames[15].gfn == HIGH + 31);
  /* Frame index 1024 + 16 is present. */
  present[1040 / 8] = 1;
  OK(PLAN(policy, HIGH + 18, 2, present, sizeof present, frames, 600));
  EXPECT(count == 15 && frames[1].gfn == HIGH + 17);
  /* A plan is cut to fit, and nothing behind it is written. */
  frames[3].gfn = 77;
  OK(PLAN(policy, HIGH + 18, 0, NULL, 0, frames, 3));
  EXPECT(count == 3 && frames[2].gfn == HIGH + 17 && frames[3].gfn == 77);
  OK(PLAN(policy, HIGH + 18, 0, NULL, 0, frames, 1));
  EXPECT(count == 1);

  count = 99;
  FAILS(PLAN(NULL, 0, read, NULL, 0, frames, 3), INVALID_ARGUMENT, "policy");
  FAILS(PLAN(policy, 2000, read, NULL, 0, frames, 3), NO_SUCH_FRAME, "0x7d0");
  FAILS(PLAN(policy, 0, 3, NULL, 0, frames, 3), INVALID_ARGUMENT, "access");
  FAILS(PLAN(policy, 0, read, NULL, 9, frames, 3), INVALID_ARGUMENT, "present");
  FAILS(PLAN(policy, 0, read, present, 255, frames, 3), INVALID_ARGUMENT, "256 bytes");
  FAILS(PLAN(policy, 0, read, NULL, 0, frames, 0), INVALID_ARGUMENT, "capacity");
  FAILS(PLAN(policy, 0, read, NULL, 0, NULL, 3), INVALID_ARGUMENT, "frames");
  FAILS(PLAN(policy, 0, read, NULL, 0, frames, SIZE_MAX), INVALID_ARGUMENT, "items");
  FAILS(kaleidoscope_policy_plan(policy, 0, read, NULL, 0, frames, 3, NULL), INVALID_ARGUMENT,
        "count");
  EXPECT(count == 99);
  kaleidoscope_policy_free(policy);
}

static void sessions(const kaleidoscope_map *map, const kaleidoscope_map *without_memory) {
  kaleidoscope_session *session = NULL;
  int pipes[2];
  EXPECT(pipe(pipes) == 0);
  kaleidoscope_region regions[2] = {{0x10000000, 4 << 20, 0}, {0x20000000, 4 << 20, 4 << 20}};
  const kaleidoscope_session_options right = {.size = sizeof right, .map = map, .regions = regions,
      .region_count = 2, .userfaultfd = pipes[0], .process = -1};
  kaleidoscope_session_options options = right;

  FAILS(kaleidoscope_session_start(NULL, &session), INVALID_ARGUMENT, "options");
  FAILS(kaleidoscope_session_start(&options, NULL), INVALID_ARGUMENT, "session");
  options.size = 8;
  FAILS(kaleidoscope_session_start(&options, &session), INVALID_ARGUMENT, "size");
#define WRONG(field, value, word)                                                     \
  options = right, options.field = value;                                             \
  FAILS(kaleidoscope_session_start(&options, &session), INVALID_ARGUMENT, word)
  WRONG(map, NULL, "options.map");
  WRONG(map, without_memory, "without its memory file");
  WRONG(policy, "none", "none");
  WRONG(regions, NULL, "options.regions");
  WRONG(region_count, SIZE_MAX / 8, "items");
  WRONG(page_size, 12345, "12345");
  WRONG(userfaultfd, -1, "userfaultfd");
  WRONG(userfaultfd, 1000000, "no open descriptor");
  WRONG(userfaultfd, pipes[0], "no userfaultfd"); /* A pipe. */
  WRONG(process, -2, "process");
  WRONG(process, 0, "pidfd");
  WRONG(process, pipes[0], "pidfd");
  WRONG(process, 1000000, "no open descriptor");
  WRONG(region_count, 1, "userfaultfd"); /* The pipe is refused first. */
  WRONG(firecracker, (const uint8_t *)"[]", "give no others");
  options.regions = NULL, options.region_count = 0, options.firecracker_bytes = 2;
  FAILS(kaleidoscope_session_start(&options, &session), INVALID_ARGUMENT, "names no regions");
  EXPECT(session == NULL);
  /* A descriptor that was refused is still the caller's. */
  char byte = 7;
  EXPECT(write(pipes[1], &byte, 1) == 1 && read(pipes[0], &byte, 1) == 1 && byte == 7);

  kaleidoscope_statistics counts;
  FAILS(kaleidoscope_session_wait(NULL), INVALID_ARGUMENT, "session");
  FAILS(kaleidoscope_session_stop(NULL), INVALID_ARGUMENT, "session");
  FAILS(kaleidoscope_session_statistics(NULL, &counts, sizeof counts), INVALID_ARGUMENT, "session");
}

/* Serves memory of this process, and is stopped. Frees the map while the session goes on. */
static void stopped(kaleidoscope_map *map) {
  const size_t bytes = 8 << 20;
  char *ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
  EXPECT(ram != MAP_FAILED && uffd >= 0);
  struct uffdio_api api = {.api = UFFD_API};
  struct uffdio_register watch = {.range = {.start = (uintptr_t)ram, .len = bytes},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  EXPECT(ioctl(uffd, UFFDIO_API, &api) == 0 && ioctl(uffd, UFFDIO_REGISTER, &watch) == 0);
  int other = fcntl(uffd, F_DUPFD_CLOEXEC, 0);
  /* The upper half of the RAM comes first. */
  kaleidoscope_region regions[2] = {{(uintptr_t)ram + bytes / 2, bytes / 2, 0},
                                    {(uintptr_t)ram, bytes / 2, bytes / 2}};
  kaleidoscope_session_options options = {.size = sizeof options, .map = map, .policy = "demand",
      .regions = regions, .region_count = 2, .threads = 2, .userfaultfd = uffd, .process = -1};
  kaleidoscope_session *session = NULL, *second = NULL;
  options.region_count = 1;
  FAILS(kaleidoscope_session_start(&options, &session), INVALID_ARGUMENT, "RAM");
  options.region_count = 2;
  OK(kaleidoscope_session_start(&options, &session));
  EXPECT(fcntl(uffd, F_GETFD) == -1 && errno == EBADF); /* It is the library's now. */
  options.userfaultfd = other;
  FAILS(kaleidoscope_session_start(&options, &second), INVALID_STATE, "one session");
  EXPECT(second == NULL && fcntl(other, F_GETFD) != -1);
  kaleidoscope_map_free(map);

  EXPECT(memcmp(ram + bytes / 2 + 0x3000, "the parent", 11) == 0 && ram[0] == 0);
  kaleidoscope_statistics counts;
  FAILS(kaleidoscope_session_statistics(session, &counts, 8), INVALID_ARGUMENT, "size");
  FAILS(kaleidoscope_session_statistics(session, NULL, sizeof counts), INVALID_ARGUMENT, "null");
  OK(kaleidoscope_session_stop(session));
  FAILS(kaleidoscope_session_wait(session), STOPPED, "stopped");
  /* Complete now that no thread answers faults. */
  OK(kaleidoscope_session_statistics(session, &counts, sizeof counts));
  EXPECT(counts.frames == 2048 && counts.resident == 2 && counts.prefetched == 0);
  EXPECT(counts.faults == 2 && counts.fetched == 2);
  EXPECT(counts.transferred_bytes == 4096); /* One page is of zeros. */
  kaleidoscope_session_free(session);
}

int main(int argc, char **argv) {
  EXPECT(argc == 5);
  EXPECT(strcmp(kaleidoscope_last_error(), "") == 0);
  kaleidoscope_map *map = NULL, *without_memory = NULL;
  FAILS(kaleidoscope_map_open(NULL, NULL, &map), INVALID_ARGUMENT, "manifest");
  FAILS(kaleidoscope_map_open(argv[1], NULL, NULL), INVALID_ARGUMENT, "map");
  FAILS(kaleidoscope_map_open("/nonexistent", NULL, &map), UNREADABLE, "/nonexistent");
  FAILS(kaleidoscope_map_open(argv[2], NULL, &map), UNREADABLE, argv[2]);
  FAILS(kaleidoscope_map_open(argv[1], "/nonexistent", &map), UNREADABLE, "/nonexistent");
  FAILS(kaleidoscope_map_open(argv[1], argv[4], &map), UNREADABLE, argv[4]);
  FAILS(kaleidoscope_map_open(argv[1], argv[3], &map), MISMATCH, "");
  EXPECT(map == NULL);
  OK(kaleidoscope_map_open(argv[1], NULL, &without_memory));
  OK(kaleidoscope_map_open(argv[1], argv[2], &map));

  uint32_t frames = 0;
  kaleidoscope_color color = 99;
  OK(kaleidoscope_map_frames(map, &frames));
  EXPECT(frames == 2048);
  FAILS(kaleidoscope_map_frames(map, NULL), INVALID_ARGUMENT, "frames");
  uint32_t *unaligned = (uint32_t *)((char *)&frames + 1);
  FAILS(kaleidoscope_map_frames(map, unaligned), INVALID_ARGUMENT, "aligned");
  FAILS(kaleidoscope_map_color(NULL, 0, &color), INVALID_ARGUMENT, "map");
  FAILS(kaleidoscope_map_color(map, 1024, &color), NO_SUCH_FRAME, "0x400");
  FAILS(kaleidoscope_map_color(map, UINT64_MAX, &color), NO_SUCH_FRAME, "");
  EXPECT(color == 99);
  OK(kaleidoscope_map_color(map, 5, &color));
  EXPECT(color == KALEIDOSCOPE_COLOR_FREE);
  OK(kaleidoscope_map_color(without_memory, HIGH + 1023, &color));
  EXPECT(color == KALEIDOSCOPE_COLOR_KERNEL_TEXT);

  plans(map);
  sessions(map, without_memory);
  stopped(map);
  kaleidoscope_map_free(without_memory);
  kaleidoscope_map_free(NULL);
  kaleidoscope_policy_free(NULL);
  kaleidoscope_session_free(NULL);
  return 0;
}
