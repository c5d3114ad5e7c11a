//! Runs `kaleidoscope serve` and `kaleidoscope pull`, and kills servers.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test fail by panicking")]

#[expect(
    dead_code,
    unreachable_pub,
    reason = "an example has a main function, which is not called here"
)]
#[path = "../examples/embed.rs"]
mod embed;

use kaleidoscope_core::color::Color;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// After this long, something hangs.
const WATCHDOG: Duration = Duration::from_secs(120);

fn kaleidoscope(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kaleidoscope"));
    command.args(arguments);
    command
}

/// A folder with an image.
struct Files(TempDir);

impl Files {
    /// A synthetic guest with a hole in its RAM: `ram.bin` and `layout.txt`.
    fn guest(fill_free: u8) -> Self {
        let builder = GuestBuilder::new(KernelStyle::V6_12).seed(5).ram_bytes(32 << 20);
        let mut guest = builder.pci_hole_at(16 << 20).build().unwrap();
        let frames: Vec<_> = guest.truth.layout().iter().collect();
        for (frame, gfn) in frames {
            if guest.truth.color(frame) == Color::Free {
                guest.memory.write(gfn.gpa(), &[fill_free; 4096]).unwrap();
            }
        }
        let files = Self(tempfile::tempdir().unwrap());
        fs::write(files.path("ram.bin"), guest.memory.bytes()).unwrap();
        let mut layout = String::new();
        for region in guest.truth.layout().regions() {
            let (offset, bytes) = (region.first_index.0 * 4096, u64::from(region.frames) * 4096);
            writeln!(layout, "{offset:#x} {:#x} {bytes:#x}", region.start.gpa().0).unwrap();
        }
        fs::write(files.path("layout.txt"), layout).unwrap();
        files
    }

    /// An image of this many frames that is no guest; each byte is a function of its place.
    fn bytes(frames: usize) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let word = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let bytes: Vec<u8> = (0..frames * 512).flat_map(word).collect();
        fs::write(files.path("ram.bin"), bytes).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn image(&self) -> Vec<u8> {
        fs::read(self.path("ram.bin")).unwrap()
    }

    /// Serves the guest with these arguments.
    fn serve(&self, arguments: &[&str]) -> Server {
        let (ram, layout) = (self.text("ram.bin"), self.text("layout.txt"));
        let mut all = vec!["serve", &ram, "--json"];
        if self.path("layout.txt").exists() {
            all.extend(["--layout", &layout]);
        }
        all.extend(arguments);
        Server::start(&all)
    }
}

/// A server's process. Dropping it kills it.
struct Server {
    child: Child,
    out: BufReader<ChildStdout>,
    serving: Value,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let mut command = kaleidoscope(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        if out.read_line(&mut line).unwrap() == 0 {
            let mut error = String::new();
            child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
            panic!("the server does not start: {error}");
        }
        let serving: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(serving["event"], "serving");
        Self { child, out, serving }
    }

    fn addresses(&self) -> Vec<String> {
        let addresses = self.serving["listening"].as_array().unwrap();
        addresses.iter().map(|a| a.as_str().unwrap().to_owned()).collect()
    }

    /// Stops it as Ctrl-C does, and returns what it says.
    fn interrupt(mut self) -> Value {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        assert!(self.child.wait().unwrap().success());
        serde_json::from_str(&line).unwrap()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn pull(addresses: &[&str], output: &str, arguments: &[&str]) -> Output {
    let arguments = [&["pull"], addresses, &["-o", output], arguments].concat();
    kaleidoscope(&arguments).output().unwrap()
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn fails(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_pulled_guest_is_the_image() {
    let files = Files::guest(0);
    let socket = format!("unix:{}", files.text("k.sock"));
    let server = files.serve(&["--listen", &socket, "--listen", "tcp:127.0.0.1:0"]);
    let addresses = server.addresses();
    assert_eq!(addresses[0], socket);
    assert!(addresses[1].starts_with("tcp:127.0.0.1:") && !addresses[1].ends_with(":0"));
    assert_eq!(server.serving["free_memory"], "zero");
    let (image, copy) = (files.image(), files.text("copy.bin"));
    for address in &addresses {
        for options in [
            &[][..],
            &["--policy", "demand"],
            &["--policy", "blind-next-16", "--compress"],
            &["--no-checksums", "--policy", "paper"],
            &["--skip-free"],
        ] {
            let options = [options, &["--json"]].concat();
            let text = succeeds(&pull(&[address], &copy, &options));
            let report: Value = serde_json::from_str(&text).unwrap();
            assert!(fs::read(&copy).unwrap() == image, "{address} {options:?}");
            assert_ne!(report["verified"], "nothing");
            assert_eq!(report["frames"], 8192);
            let sum = |field: &str| -> u64 {
                let colors = report["colors"].as_array().unwrap();
                colors.iter().map(|color| color[field].as_u64().unwrap()).sum()
            };
            assert_eq!((sum("frames"), report["total"]["faults"].as_u64()), (8192, Some(0)));
            let came = sum("prefetched_frames") + sum("filled_frames");
            assert_eq!(came, sum("resident_frames"));
            assert_eq!(came == 8192, !options.contains(&"--skip-free"), "{report}");
            fs::remove_file(&copy).unwrap();
        }
    }
    let end = server.interrupt();
    assert_eq!((&end["event"], &end["violations"]), (&"stopped".into(), &0.into()));
    // Ten pulls, with a second connection each for what they start from.
    assert_eq!(end["connections"], 20);
    assert!(end["frames"].as_u64().unwrap() > 8 * 8192);
    assert!(!files.path("k.sock").exists(), "the server takes its socket away");
}

#[test]
fn what_comes_beside_the_memory_fits_it() {
    let files = Files::guest(0xaa);
    let socket = format!("unix:{}", files.text("k.sock"));
    let (state, descriptor) = (files.text("state"), files.text("guest.kclone"));
    fs::write(&state, b"registers").unwrap();
    let server =
        files.serve(&["--listen", &socket, "--state", &state, "--descriptor-to", &descriptor]);
    assert_eq!(server.serving["free_memory"], "fetch", "poisoned pages are not left out");
    let [copy, layout, manifest] = ["copy.bin", "copy.txt", "copy.kscope"].map(|n| files.text(n));
    let error = fails(&pull(&[&socket], &copy, &["--skip-free"]));
    assert!(error.contains("free frames may be left out"), "{error}");
    let table =
        succeeds(&pull(&[&socket], &copy, &["--layout-to", &layout, "--map-to", &manifest]));
    assert!(fs::read(&copy).unwrap() == files.image());
    for words in ["Linux 6.12.107+mock-amd64", "page-table", "verified: the file has"] {
        assert!(table.contains(words), "{words} in\n{table}");
    }
    let colored = |arguments: &[&str]| {
        let output = kaleidoscope(arguments).output().unwrap();
        let document: Value = serde_json::from_str(&succeeds(&output)).unwrap();
        document["colors"].clone()
    };
    let of_copy = colored(&["color", &copy, "--layout", &layout, "--json"]);
    assert_eq!(of_copy, colored(&["map", &manifest, "--json"]));

    // The descriptor in the file says the same.
    let limits = kaleidoscope_core::clone::DescriptorLimits::default();
    let read = kaleidoscope_core::clone::Descriptor::read_file(descriptor.as_ref(), &limits);
    let read = read.unwrap();
    assert_eq!((read.state(), read.servers().len()), (&b"registers"[..], 1));
    assert_eq!(server.serving["identity"], read.identity().to_string());

    // Served from the manifest, it is the same image.
    drop(server);
    let socket = format!("unix:{}", files.text("again.sock"));
    let server = files.serve(&["--listen", &socket, "--map-from", &manifest]);
    assert_eq!(server.serving["identity"], read.identity().to_string());
}

/// Free frames are zeros unless the server says otherwise, as in every clone of its descriptor.
#[test]
fn the_embedded_engine_reads_the_image() {
    let files = Files::guest(7);
    let image = files.image();
    for (name, flags) in [("all.sock", &["--fetch-free"][..]), ("default.sock", &[])] {
        let socket = format!("unix:{}", files.text(name));
        let _server = files.serve(&[&["--listen", &socket], flags].concat());
        let mut out = Vec::new();
        embed::run(&socket, &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        let lines: Vec<_> = out.lines().collect();
        let (last, words) = lines.split_last().unwrap();
        assert_eq!(words.len(), 8192 / 16);
        let mut zeroed = 0;
        for (n, line) in words.iter().enumerate() {
            let page = &image[n * 16 * 4096..];
            let word = u64::from_le_bytes(page[..8].try_into().unwrap());
            let is_zeroed = word != 0 && line.ends_with(" 0000000000000000");
            assert!(is_zeroed || line.ends_with(&format!(" {word:016x}")), "{line}");
            zeroed += usize::from(is_zeroed);
        }
        assert_eq!(zeroed > 0, flags.is_empty(), "{zeroed} of 512 words are zeros");
        assert!(last.contains("pages ahead of them"), "{last}");
    }
    assert!(embed::run("unix:/nonexistent", &mut Vec::new()).is_err());
}

/// An authority, and a certificate of it for this name with its key: three files.
fn certificates(files: &Files, name: &str) -> [String; 3] {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &authority).unwrap();
    let texts = [("cert", leaf.pem()), ("key", key.serialize_pem()), ("ca", authority.pem())];
    texts.map(|(what, text)| {
        let path = files.text(&format!("{name}.{what}"));
        fs::write(&path, text).unwrap();
        path
    })
}

#[test]
fn certificates_let_in_and_keep_out() {
    let files = Files::bytes(64);
    let [cert, key, ca] = certificates(&files, "ours");
    let tls = ["--cert", &cert, "--key", &key, "--ca", &ca];
    let listen = ["--no-colors", "--listen", "tcp:127.0.0.1:0"];
    let server = files.serve(&[&listen[..], &tls].concat());
    let address = server.addresses().remove(0);
    let copy = files.text("copy.bin");
    succeeds(&pull(&[&address], &copy, &tls));
    assert!(fs::read(&copy).unwrap() == files.image());
    succeeds(&pull(&[&address], &copy, &[&tls[..], &["--server-name", "ours"]].concat()));
    fs::remove_file(&copy).unwrap();

    let [cert, key, other] = certificates(&files, "theirs");
    fails(&pull(&[&address], &copy, &["--cert", &cert, "--key", &key, "--ca", &ca]));
    fails(&pull(&[&address], &copy, &[&tls[..4], &["--ca", &other]].concat()));
    fails(&pull(&[&address], &copy, &[&tls[..], &["--server-name", "theirs"]].concat()));
    fails(&pull(&[&address], &copy, &["--timeout", "2"]));
    assert!(!files.path("copy.bin").exists());
    // With certificates, a server may listen where other hosts come.
    drop(files.serve(&[&["--no-colors", "--listen", "tcp:0.0.0.0:0"], &tls[..]].concat()));
}

#[test]
fn mistakes_are_explained() {
    let files = Files::bytes(64);
    let ram = files.text("ram.bin");
    let run = |arguments: &[&str]| fails(&kaleidoscope(arguments).output().unwrap());
    let error = run(&["serve", &ram, "--no-colors", "--listen", "tcp:0.0.0.0:0"]);
    assert!(error.contains("not a loopback address") && error.contains("hint: "), "{error}");
    let error = run(&["serve", &ram, "--listen", "tcp:127.0.0.1:0"]);
    assert!(error.contains("hint: is this the memory of a Linux guest"), "{error}");
    let copy = files.text("copy.bin");
    let error = fails(&pull(&["unix:/nonexistent"], &copy, &[]));
    assert!(error.contains("/nonexistent") && error.contains("hint: "), "{error}");
    for arguments in [&["serve", &ram][..], &["pull"], &["pull", "vsock:1", "-o", "x"]] {
        let output = kaleidoscope(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    let output = pull(&["unix:/x"], &copy, &["--policy", "oracle"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("the oracle needs a trace"));
    assert!(!files.path("copy.bin").exists());
    for command in ["serve", "pull"] {
        let help = succeeds(&kaleidoscope(&[command, "--help"]).output().unwrap());
        assert!(help.contains("Examples:") && help.contains("--"), "{help}");
    }
}

/// Frames of the image on which servers are killed: enough that a pull takes a while.
const FRAMES: usize = 512;

/// So many pages a second: a pull takes about an eighth of a second.
const RATE: &str = "4000";

/// A pull in its own process, whose server is killed after `delay`.
fn pull_while_killed(files: &Files, number: u64, delay: Duration, replica: Option<&str>) -> Output {
    let socket = format!("unix:{}", files.text(&format!("{number}.sock")));
    let mut server = files.serve(&["--no-colors", "--listen", &socket]);
    let copy = files.text(&format!("{number}.bin"));
    let timeout = if replica.is_some() { "60" } else { "0.3" };
    let options = ["-o", &copy, "--policy", "demand", "--rate", RATE, "--timeout", timeout];
    let arguments = [&["pull", &socket][..], replica.as_slice(), &options].concat();
    let start = Instant::now();
    let child = kaleidoscope(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    std::thread::sleep(delay);
    server.kill();
    let output = child.unwrap().wait_with_output().unwrap();
    assert!(start.elapsed() < WATCHDOG, "the pull hangs");
    output
}

/// Kills servers `kills` times at times that differ, four at a time; `check` looks at what came of
/// each pull, and says whether the kill was in the middle of it.
fn kill_servers(
    kills: u64,
    files: &Files,
    replica: Option<&str>,
    check: impl Fn(u64, &Output) -> bool + Sync,
) {
    let (next, hits) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= kills {
                        return;
                    }
                    // From before the first page to after the last.
                    let delay = Duration::from_millis(number * 0x9e37 % 200);
                    let output = pull_while_killed(files, number, delay, replica);
                    hits.fetch_add(u64::from(check(number, &output)), Ordering::Relaxed);
                }
            });
        }
    });
    let hits = hits.into_inner();
    assert!(hits >= kills / 4, "only {hits} of {kills} kills hit a pull");
}

#[test]
fn a_pull_survives_its_server() {
    let files = Files::bytes(FRAMES);
    let image = files.image();
    let replica = format!("unix:{}", files.text("replica.sock"));
    let server = files.serve(&["--no-colors", "--listen", &replica]);
    kill_servers(100, &files, Some(&replica), |number, output| {
        succeeds(output);
        assert!(fs::read(files.path(&format!("{number}.bin"))).unwrap() == image);
        String::from_utf8_lossy(&output.stdout).contains("new connection")
    });
    assert_eq!(server.interrupt()["violations"], 0);
}

#[test]
fn a_pull_without_a_replica_ends_with_its_server() {
    let files = Files::bytes(FRAMES);
    let image = files.image();
    kill_servers(100, &files, None, |number, output| {
        let copy = files.path(&format!("{number}.bin"));
        if output.status.success() {
            // It had everything before.
            assert!(fs::read(copy).unwrap() == image);
            return false;
        }
        let error = fails(output);
        assert!(error.starts_with("error: ") && error.contains("hint: "), "{error}");
        assert!(!copy.exists(), "half an image has no name");
        error.contains("no source of pages any more")
    });
    let left: Vec<_> =
        fs::read_dir(files.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    let is_temporary = |name: &std::ffi::OsString| name.to_string_lossy().starts_with(".kscope-");
    assert!(!left.iter().any(is_temporary), "{left:?}");
}

/// Serves an image of 4096 frames, has `change` change its file, and pulls twice. Returns what the
/// server says of it.
fn pull_changed(arguments: &[&str], change: impl FnOnce(&fs::File)) -> String {
    let files = Files::bytes(4096);
    let (socket, copy) = (format!("unix:{}", files.text("s")), files.text("copy.bin"));
    let all = [&["--no-colors", "--listen", &socket], arguments].concat();
    let mut server = files.serve(&all);
    succeeds(&pull(&[&socket], &copy, &[]));
    fs::remove_file(&copy).unwrap();
    change(&fs::OpenOptions::new().write(true).open(files.path("ram.bin")).unwrap());
    for _ in 0..2 {
        let error = fails(&pull(&[&socket], &copy, &["--timeout", "2"]));
        assert!(error.contains("the image cannot be read"), "{error}");
        assert!(!files.path("copy.bin").exists());
    }
    let mut stderr = server.child.stderr.take().unwrap();
    // It has not died of it.
    assert_eq!(server.interrupt()["event"], "stopped");
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(said.matches("clients of the image get errors").count(), 1, "{said}");
    said
}

#[test]
fn a_cut_image_is_an_error_for_its_clients() {
    for arguments in [&[][..], &["--verify", "all"]] {
        let said = pull_changed(arguments, |file| file.set_len(1000 * 4096).unwrap());
        assert!(said.contains("it had 0x1000000 bytes and has 0x3e8000"), "{said}");
    }
}

#[test]
fn changed_pages_are_not_served() {
    let said = pull_changed(&[], |file| {
        // Bytes of frames that are not in the sample of the image's identity, which is every
        // fourth.
        (0..500u64).for_each(|i| file.write_all_at(&[0x77], (i * 8 + 1) * 4096 + 5).unwrap());
    });
    assert!(said.contains("it was written to"), "{said}");
}

#[test]
fn all_of_an_image_can_be_checked() {
    let files = Files::guest(0);
    let (all, sample) = (format!("unix:{}", files.text("a")), format!("unix:{}", files.text("b")));
    let _server = files.serve(&["--listen", &all, "--verify", "all"]);
    let _other = files.serve(&["--listen", &sample]);
    let copy = files.text("copy.bin");
    let verified = |address: &str, arguments: &[&str]| -> Value {
        let text = succeeds(&pull(&[address], &copy, &[arguments, &["--json"]].concat()));
        serde_json::from_str::<Value>(&text).unwrap()["verified"].clone()
    };
    assert_eq!(verified(&all, &[]), "all");
    assert_eq!(fs::read(&copy).unwrap(), files.image());
    assert_eq!(verified(&all, &["--verify", "all", "--skip-free"]), "all-but-free");
    assert_eq!(verified(&all, &["--verify", "sample"]), "sample");
    assert_eq!(verified(&sample, &[]), "sample");
    let error = fails(&pull(&[&sample], &copy, &["--verify", "all"]));
    assert!(error.contains("serve --verify all"), "{error}");
    assert!(succeeds(&pull(&[&all], &copy, &[])).contains("verified: every frame is that of"));
}
