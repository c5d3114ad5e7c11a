/* Kaleidoscope's C interface: colors of a guest's frames, prefetch plans, and sessions that serve
 * userfaultfds. Made by `scripts/capi header` from backend-kvm/src/capi: do not edit.
 *
 * - A function returns a status; kaleidoscope_last_error() is the message of a thread's last failure.
 * - Null where a pointer is required is KALEIDOSCOPE_STATUS_INVALID_ARGUMENT. A result is written
 *   only if the status is KALEIDOSCOPE_STATUS_OK.
 * - Objects may be used by several threads at once. Free an object once, when no call uses it; the
 *   objects that were made from it live on.
 */

#ifndef KALEIDOSCOPE_H
#define KALEIDOSCOPE_H

#include <stddef.h>
#include <stdint.h>

// How a frame was accessed.
enum kaleidoscope_access
#ifdef __cplusplus
  : uint32_t
#endif // __cplusplus
 {
  // Not known.
  KALEIDOSCOPE_ACCESS_UNKNOWN = 0,
  // Read or executed.
  KALEIDOSCOPE_ACCESS_READ = 1,
  // Written.
  KALEIDOSCOPE_ACCESS_WRITE = 2,
};
#ifndef __cplusplus
typedef uint32_t kaleidoscope_access;
#endif // __cplusplus

// What to do with a planned frame.
enum kaleidoscope_action
#ifdef __cplusplus
  : uint32_t
#endif // __cplusplus
 {
  // Fetch it from the memory file.
  KALEIDOSCOPE_ACTION_FETCH = 0,
  // Fill it with zeros: the guest does not need its bytes.
  KALEIDOSCOPE_ACTION_ZERO = 1,
};
#ifndef __cplusplus
typedef uint32_t kaleidoscope_action;
#endif // __cplusplus

// Use of a frame in the guest. The values are stable; later versions may add colors.
enum kaleidoscope_color
#ifdef __cplusplus
  : uint32_t
#endif // __cplusplus
 {
  // Nothing is known; treated like data.
  KALEIDOSCOPE_COLOR_UNKNOWN = 0,
  // Free in the guest.
  KALEIDOSCOPE_COLOR_FREE = 1,
  // The kernel image's executable part.
  KALEIDOSCOPE_COLOR_KERNEL_TEXT = 2,
  // The kernel image's read-only data.
  KALEIDOSCOPE_COLOR_KERNEL_RODATA = 3,
  // The kernel image's writable data.
  KALEIDOSCOPE_COLOR_KERNEL_DATA = 4,
  // Executable kernel memory outside the image: modules, BPF programs.
  KALEIDOSCOPE_COLOR_KERNEL_MODULE = 5,
  // Per-CPU variables.
  KALEIDOSCOPE_COLOR_PER_CPU = 6,
  // The frame table (`struct page` array).
  KALEIDOSCOPE_COLOR_FRAME_TABLE = 7,
  // Page tables.
  KALEIDOSCOPE_COLOR_PAGE_TABLE = 8,
  // Kernel stacks.
  KALEIDOSCOPE_COLOR_KERNEL_STACK = 9,
  // Slab caches and large `kmalloc` blocks.
  KALEIDOSCOPE_COLOR_SLAB = 10,
  // Other memory in the kernel's vmalloc area.
  KALEIDOSCOPE_COLOR_VMALLOC = 11,
  // Pages that the kernel allocated for itself in other ways.
  KALEIDOSCOPE_COLOR_KERNEL_ALLOC = 12,
  // Reserved at boot outside the kernel image.
  KALEIDOSCOPE_COLOR_RESERVED = 13,
  // Anonymous memory.
  KALEIDOSCOPE_COLOR_ANONYMOUS = 14,
  // Anonymous memory that is mapped executable.
  KALEIDOSCOPE_COLOR_ANONYMOUS_CODE = 15,
  // tmpfs, memfd, System V shared memory.
  KALEIDOSCOPE_COLOR_SHARED = 16,
  // File page cache that a process maps executable.
  KALEIDOSCOPE_COLOR_FILE_CODE = 17,
  // File page cache that a process maps, but none maps executable.
  KALEIDOSCOPE_COLOR_FILE_MAPPED = 18,
  // File page cache that no process maps.
  KALEIDOSCOPE_COLOR_FILE_CACHE = 19,
  // Page cache of block devices.
  KALEIDOSCOPE_COLOR_BLOCK_CACHE = 20,
  // Pages of a hugetlb pool.
  KALEIDOSCOPE_COLOR_HUGETLB = 21,
  // Ballooned or unplugged.
  KALEIDOSCOPE_COLOR_OFFLINE = 22,
};
#ifndef __cplusplus
typedef uint32_t kaleidoscope_color;
#endif // __cplusplus

// What a call returns. The values are stable; later versions may add statuses.
enum kaleidoscope_status
#ifdef __cplusplus
  : int32_t
#endif // __cplusplus
 {
  // The call succeeded.
  KALEIDOSCOPE_STATUS_OK = 0,
  // An argument is null, too long, unknown, or not what it has to be.
  KALEIDOSCOPE_STATUS_INVALID_ARGUMENT = 1,
  // The guest has no RAM at this frame.
  KALEIDOSCOPE_STATUS_NO_SUCH_FRAME = 2,
  // A file cannot be read, or is not a manifest or a memory file.
  KALEIDOSCOPE_STATUS_UNREADABLE = 3,
  // The manifest was made from another memory file.
  KALEIDOSCOPE_STATUS_MISMATCH = 4,
  // This process may not use userfaultfd, or this host does not have it.
  KALEIDOSCOPE_STATUS_UNAVAILABLE = 5,
  // The kernel lacks a feature.
  KALEIDOSCOPE_STATUS_UNSUPPORTED = 6,
  // The system refused a request, out of memory for example.
  KALEIDOSCOPE_STATUS_REFUSED = 7,
  // The call is not possible in the state that the object is in.
  KALEIDOSCOPE_STATUS_INVALID_STATE = 8,
  // The session was stopped before the VM ended.
  KALEIDOSCOPE_STATUS_STOPPED = 9,
  // Pages cease to come: end the VM, whose vCPUs wait for missing pages.
  KALEIDOSCOPE_STATUS_FAILED = 10,
  // A defect of the library. Free the object, and end the VM of a session.
  KALEIDOSCOPE_STATUS_PANICKED = 11,
};
#ifndef __cplusplus
typedef int32_t kaleidoscope_status;
#endif // __cplusplus

// The colors of a guest's frames and, if a memory file was given, the frames' bytes.
typedef struct kaleidoscope_map kaleidoscope_map;

// Decides which frames a clone receives before it touches them. One policy serves one clone.
typedef struct kaleidoscope_policy kaleidoscope_policy;

// A userfaultfd that is being served, on threads of the library.
typedef struct kaleidoscope_session kaleidoscope_session;

// A frame of a plan.
typedef struct kaleidoscope_planned_frame {
  // Guest-physical frame number.
  uint64_t gfn;
  // What to do with the frame.
  kaleidoscope_action action;
} kaleidoscope_planned_frame;

// A piece of a guest's RAM in the address space of the process that opened the userfaultfd. All
// three are in bytes, multiples of the page size.
typedef struct kaleidoscope_region {
  // Address of its first byte in that process.
  uint64_t address;
  // Length.
  uint64_t bytes;
  // Where it begins in the RAM: guest-physical order, without the holes between.
  uint64_t offset;
} kaleidoscope_region;

// What a session is made of. Set all of it to zero, then `size`, and what is not the default.
typedef struct kaleidoscope_session_options {
  // `sizeof (kaleidoscope_session_options)`.
  size_t size;
  // A map that was opened with its memory file. It may be freed before the session; several
  // sessions may share one.
  const struct kaleidoscope_map *map;
  // The name of a policy as for `kaleidoscope_policy_new`; null is `predicted`.
  const char *policy;
  // The regions that are registered with the userfaultfd: together all of the guest's RAM. Null
  // if `firecracker` is given.
  const struct kaleidoscope_region *regions;
  // Number of the regions.
  size_t region_count;
  // The message that Firecracker sent with its userfaultfd, which describes the regions and the
  // page size; or null.
  const uint8_t *firecracker;
  // Length of that message in bytes.
  size_t firecracker_bytes;
  // Bytes of a page of the VM's memory: 4096 (also if 0), or 2097152 for hugetlb memory. Must be
  // 0 if `firecracker` is given.
  uint64_t page_size;
  // Threads that answer faults; 0 is 1.
  uint32_t threads;
  // The userfaultfd, on which UFFDIO_API and UFFDIO_REGISTER were called.
  int32_t userfaultfd;
  // A pidfd of the VM's process, whose exit ends the session; or -1: the session then ends when
  // it is stopped, or when it fails to fill a page because the process has exited. 0 is refused:
  // it is what a caller has forgotten to set.
  int32_t process;
} kaleidoscope_session_options;

// Counters of a session: frames of 4096 bytes, unless a field states another unit. They are read
// one after another, so that they may disagree by what happened meanwhile.
typedef struct kaleidoscope_statistics {
  // Number of the guest's frames.
  uint64_t frames;
  // Frames in the VM's memory now.
  uint64_t resident;
  // Touches that waited for a frame that had not been requested.
  uint64_t faults;
  // Touches that waited for a frame in flight.
  uint64_t late;
  // Touches that were answered with zeros.
  uint64_t zero_faults;
  // Frames fetched because they were touched.
  uint64_t fetched;
  // Frames fetched because the policy planned them.
  uint64_t prefetched;
  // Frames filled with zeros ahead of any touch.
  uint64_t zeroed_ahead;
  // Bytes of page contents transferred. Pages of zeros count nothing.
  uint64_t transferred_bytes;
  // Nanoseconds that touches have waited, summed over all vCPUs.
  uint64_t stalled_ns;
} kaleidoscope_statistics;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The message of the calling thread's last failed call: UTF-8, in English, for display. Never
// null; empty if no call of this thread has failed. Valid until this thread's next failed call or
// its end.
const char *kaleidoscope_last_error(void);

// Opens a manifest, which `kaleidoscope color -o FILE` writes.
//
// `memory` is the memory file that the manifest was made from, or null. It is an ELF dump, or
// holds the guest's RAM in the order of guest-physical addresses without the holes between. The
// manifest is verified against it (`KALEIDOSCOPE_STATUS_MISMATCH` if it is of another snapshot). A
// session needs it. The file must not change while it is in use.
//
// # Safety
// Strings end with NUL. `map` is where the result goes; free it with `kaleidoscope_map_free`.
kaleidoscope_status kaleidoscope_map_open(const char *manifest,
                                          const char *memory,
                                          struct kaleidoscope_map **map);

// The number of the guest's frames (4096 bytes each).
//
// # Safety
// `map` is from `kaleidoscope_map_open`; `frames` is where the result goes.
kaleidoscope_status kaleidoscope_map_frames(const struct kaleidoscope_map *map, uint32_t *frames);

// The color of the frame with the guest-physical frame number `gfn` (the guest-physical address
// divided by 4096). `KALEIDOSCOPE_STATUS_NO_SUCH_FRAME` if the guest has no RAM there.
//
// # Safety
// `map` is from `kaleidoscope_map_open`; `color` is where the result goes.
kaleidoscope_status kaleidoscope_map_color(const struct kaleidoscope_map *map,
                                           uint64_t gfn,
                                           kaleidoscope_color *color);

// Frees a map. Null is allowed. Policies and sessions that were made from it live on.
//
// # Safety
// `map` is null or from `kaleidoscope_map_open`, no other call uses it, and none will.
void kaleidoscope_map_free(struct kaleidoscope_map *map);

// Makes a policy.
//
// `name` is `predicted` (also if null), `region` (as `predicted`, without its stream of frames that
// clones are likely to use), `demand` (only the frame of the fault), `blind-next-N` (the N frames
// that follow), or `blind-aligned-N` (the aligned block of N frames); N is at most 1048576.
//
// # Safety
// `map` is from `kaleidoscope_map_open`, and may be freed before the policy. `name` ends with NUL.
// `policy` is where the result goes; free it with `kaleidoscope_policy_free`.
kaleidoscope_status kaleidoscope_policy_new(const struct kaleidoscope_map *map,
                                            const char *name,
                                            struct kaleidoscope_policy **policy);

// Plans for a fault: writes the frame of the fault, then frames to fetch in descending priority,
// then frames to fill with zeros. Every other frame is RAM that is not present; none comes twice.
// There are zeros only if the map was verified against its memory file, and its free frames are
// known to be safe to lose.
//
// `access` is one of `kaleidoscope_access`. `present` says which frames the clone has: bit `n % 8`
// of byte `n / 8` is frame index `n`, the frame at byte `4096 * n` of the RAM in the order of
// guest-physical addresses without holes. It has at least one bit for each frame; null with 0
// bytes says that no frame is present.
//
// `frames` has room for `capacity` frames, at least 1; a plan is cut to fit, and has at most 513.
// `count` is the number of frames written.
//
// # Safety
// `policy` is from `kaleidoscope_policy_new`; `present` has `present_bytes` bytes, `frames` room
// for `capacity` items, and `count` is a place for the result.
kaleidoscope_status kaleidoscope_policy_plan(const struct kaleidoscope_policy *policy,
                                             uint64_t gfn,
                                             uint32_t access,
                                             const uint8_t *present,
                                             size_t present_bytes,
                                             struct kaleidoscope_planned_frame *frames,
                                             size_t capacity,
                                             size_t *count);

// Frees a policy. Null is allowed.
//
// # Safety
// `policy` is null or from `kaleidoscope_policy_new`, no other call uses it, and none will.
void kaleidoscope_policy_free(struct kaleidoscope_policy *policy);

// Starts to serve a userfaultfd.
//
// If the status is `KALEIDOSCOPE_STATUS_OK`, the userfaultfd and the pidfd belong to the library,
// and may be closed already when the call returns. Otherwise they remain the caller's; end the VM
// before the userfaultfd is closed, because missing pages then read as zeros.
//
// # Safety
// `options` and what it points to are valid during the call. The caller owns the descriptors.
// `session` is where the result goes; free it with `kaleidoscope_session_free`.
kaleidoscope_status kaleidoscope_session_start(const struct kaleidoscope_session_options *options,
                                               struct kaleidoscope_session **session);

// Waits until the VM has ended: `KALEIDOSCOPE_STATUS_OK`. `KALEIDOSCOPE_STATUS_STOPPED` if the
// session was stopped before. `KALEIDOSCOPE_STATUS_FAILED` if pages cease to come: end the VM,
// whose vCPUs wait for missing pages.
//
// # Safety
// `session` is from `kaleidoscope_session_start`, and is not freed during the call.
kaleidoscope_status kaleidoscope_session_wait(const struct kaleidoscope_session *session);

// Ends the session: calls of `kaleidoscope_session_wait` return. vCPUs that touch a missing page
// wait from then on. Any thread may call it.
//
// # Safety
// `session` is from `kaleidoscope_session_start`, and is not freed during the call.
kaleidoscope_status kaleidoscope_session_stop(const struct kaleidoscope_session *session);

// Stops a session and frees it. Null is allowed. If pages are missing and the VM still runs, the
// library keeps the userfaultfd open, because missing pages would read as zeros: end the VM.
//
// # Safety
// `session` is null or from `kaleidoscope_session_start`, no other call uses it, and none will.
void kaleidoscope_session_free(struct kaleidoscope_session *session);

// A session's counters, at any time. `size` is `sizeof (kaleidoscope_statistics)`.
//
// # Safety
// `session` is from `kaleidoscope_session_start`, and is not freed during the call; `statistics`
// is where the result goes.
kaleidoscope_status kaleidoscope_session_statistics(const struct kaleidoscope_session *session,
                                                    struct kaleidoscope_statistics *statistics,
                                                    size_t size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KALEIDOSCOPE_H */
