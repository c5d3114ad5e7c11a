// Serves a userfaultfd from Go: serve MANIFEST MEMORY
//
// A child process stands in for the VMM, as in ../c/serve.c: it maps memory, opens a userfaultfd,
// and sends it over a Unix socket. The parent serves it from the memory file. The child compares
// every byte with the file; only free frames may be zeros instead. The exit status is 0 if all was
// right.
package main

/*
#cgo LDFLAGS: -lkaleidoscope
#include <kaleidoscope.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

// Macros with arguments are not visible to Go.
static int watch(int uffd, void *start, size_t bytes) {
  struct uffdio_api api = {.api = UFFD_API};
  struct uffdio_register watch = {.range = {.start = (uintptr_t)start, .len = bytes},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  return ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &watch);
}
*/
import "C"

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"
)

const page = 4096

// require calls a function of the library. The message of a failure belongs to the thread.
func require(what string, call func() C.kaleidoscope_status) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if status := call(); status != C.KALEIDOSCOPE_STATUS_OK {
		log.Fatalf("%s: status %d: %s", what, status, C.GoString(C.kaleidoscope_last_error()))
	}
}

func check(err error, what string) {
	if err != nil {
		log.Fatalf("%s: %v", what, err)
	}
}

func open(manifest, memory string) *C.kaleidoscope_map {
	var colors *C.kaleidoscope_map
	paths := [2]*C.char{C.CString(manifest), C.CString(memory)}
	defer C.free(unsafe.Pointer(paths[0]))
	defer C.free(unsafe.Pointer(paths[1]))
	require("kaleidoscope_map_open", func() C.kaleidoscope_status {
		return C.kaleidoscope_map_open(paths[0], paths[1], &colors)
	})
	return colors
}

// vmm is the child: its descriptor 3 is the socket.
func vmm(manifest, memory string) {
	colors := open(manifest, memory)
	expected, err := os.ReadFile(memory)
	check(err, "memory file")
	ram, err := syscall.Mmap(-1, 0, len(expected), syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
	check(err, "mmap")
	flags := syscall.O_CLOEXEC | syscall.O_NONBLOCK | C.UFFD_USER_MODE_ONLY
	uffd, _, errno := syscall.Syscall(C.SYS_userfaultfd, uintptr(flags), 0, 0)
	if errno != 0 {
		log.Fatalf("userfaultfd: %v", errno)
	}
	start := unsafe.Pointer(&ram[0])
	if result, err := C.watch(C.int(uffd), start, C.size_t(len(ram))); result != 0 {
		log.Fatalf("watching the memory: %v", err)
	}
	message := binary.LittleEndian.AppendUint64(nil, uint64(uintptr(start)))
	check(syscall.Sendmsg(3, message, syscall.UnixRights(int(uffd)), nil, 0), "sendmsg")

	zeros := make([]byte, page)
	for at := len(ram) - page; at >= 0; at -= page {
		found := ram[at : at+page]
		if bytes.Equal(found, expected[at:at+page]) {
			continue
		}
		// Memory without holes: frame numbers agree.
		color := C.kaleidoscope_color(C.KALEIDOSCOPE_COLOR_UNKNOWN)
		C.kaleidoscope_map_color(colors, C.uint64_t(at/page), &color)
		if color != C.KALEIDOSCOPE_COLOR_FREE || !bytes.Equal(found, zeros) {
			log.Fatalf("frame %d is wrong", at/page)
		}
	}
}

// receive returns the child's address and userfaultfd.
func receive(socket *os.File) (uint64, int) {
	connection, err := net.FileConn(socket)
	check(err, "socket")
	defer connection.Close()
	message, control := make([]byte, 8), make([]byte, 64)
	n, controls, _, _, err := connection.(*net.UnixConn).ReadMsgUnix(message, control)
	check(err, "recvmsg")
	messages, err := syscall.ParseSocketControlMessage(control[:controls])
	check(err, "control message")
	if n != len(message) || len(messages) != 1 {
		log.Fatal("the child sent no address and userfaultfd")
	}
	descriptors, err := syscall.ParseUnixRights(&messages[0])
	check(err, "descriptors")
	return binary.LittleEndian.Uint64(message), descriptors[0]
}

func main() {
	if len(os.Args) == 4 {
		vmm(os.Args[1], os.Args[2])
		return
	} else if len(os.Args) != 3 {
		log.Fatal("usage: serve MANIFEST MEMORY")
	}
	colors := open(os.Args[1], os.Args[2])
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	check(err, "socketpair")
	socket, other := os.NewFile(uintptr(ends[0]), "socket"), os.NewFile(uintptr(ends[1]), "vmm")
	child := exec.Command("/proc/self/exe", os.Args[1], os.Args[2], "vmm")
	child.ExtraFiles, child.Stderr = []*os.File{other}, os.Stderr
	runtime.LockOSThread() // The child is killed when the thread that started it ends.
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(child.Start(), "starting the child")
	other.Close()
	address, uffd := receive(socket)
	process, _, errno := syscall.Syscall(C.SYS_pidfd_open, uintptr(child.Process.Pid), 0, 0)
	if errno != 0 {
		log.Fatalf("pidfd_open: %v", errno)
	}

	var frames C.uint32_t
	require("kaleidoscope_map_frames", func() C.kaleidoscope_status {
		return C.kaleidoscope_map_frames(colors, &frames)
	})
	// What the options point to is C's memory: Go's may hold no pointers to Go's when C sees it.
	region := (*C.kaleidoscope_region)(C.calloc(1, C.sizeof_kaleidoscope_region))
	defer C.free(unsafe.Pointer(region))
	region.address, region.bytes = C.uint64_t(address), C.uint64_t(frames)*page
	options := C.kaleidoscope_session_options{size: C.sizeof_kaleidoscope_session_options}
	options._map, options.regions, options.region_count = colors, region, 1
	options.userfaultfd, options.process = C.int32_t(uffd), C.int32_t(process)
	var session *C.kaleidoscope_session
	require("kaleidoscope_session_start", func() C.kaleidoscope_status {
		return C.kaleidoscope_session_start(&options, &session)
	})
	require("kaleidoscope_session_wait", func() C.kaleidoscope_status {
		return C.kaleidoscope_session_wait(session)
	})
	var counts C.kaleidoscope_statistics
	require("kaleidoscope_session_statistics", func() C.kaleidoscope_status {
		return C.kaleidoscope_session_statistics(session, &counts, C.sizeof_kaleidoscope_statistics)
	})
	C.kaleidoscope_session_free(session)
	C.kaleidoscope_map_free(colors)
	check(child.Wait(), "the child")
	fmt.Printf("%d frames resident, %d faults\n", counts.resident, counts.faults)
	if counts.faults == 0 {
		os.Exit(1)
	}
}
