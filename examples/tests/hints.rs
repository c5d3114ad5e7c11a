//! Each error says what to do next, and what it says works.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A user without rights.
const NOBODY: u32 = 65534;

fn kaleidoscope() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kaleidoscope"))
}

/// Runs a command that has to fail, and returns what it says.
fn fails(words: &[&str]) -> String {
    let output = kaleidoscope().args(words).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(matches!(output.status.code(), Some(2)), "{words:?}: {}: {said}", output.status);
    assert!(said.starts_with("error: ") && said.contains("\nhint: "), "{words:?}: {said}");
    said
}

/// A folder with an image of no guest, to which all users have access.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let bytes: Vec<u8> = (0..64 << 12).map(|at: u32| (at / 7).to_le_bytes()[0]).collect();
    fs::write(folder.path().join("ram.bin"), bytes).unwrap();
    folder
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A server that is killed at the end.
struct Serving(Child);

impl Serving {
    /// Starts a server and returns what it says until its line on how to pull, with what is
    /// explained of that.
    fn start(folder: &Path, words: &[&str]) -> (Self, Vec<String>) {
        let mut command = kaleidoscope();
        command.args(["serve", "ram.bin", "--no-colors"]).args(words).current_dir(folder);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut serving = Self(child);
        let mut lines = Vec::new();
        for line in BufReader::new(serving.0.stdout.take().unwrap()).lines() {
            lines.push(line.unwrap());
            if lines.last().is_some_and(|line| line.starts_with("pull with: ")) {
                break;
            }
        }
        (serving, lines)
    }

    /// Ends it, and returns what it said on standard error.
    fn end(mut self) -> String {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_not_there_is_named() {
    let folder = folder();
    let path = text(folder.path());
    let image = text(&folder.path().join("ram.bin"));
    let socket = format!("unix:{path}/none");
    let copy = text(&folder.path().join("copy"));

    let said = fails(&["bench", "nosuchfilter"]);
    assert!(said.contains("nosuchfilter") && said.contains("fault, two cores"), "{said}");
    let said = fails(&["bench", "start of a clone of 512", "--max-memory", "64M"]);
    assert!(said.contains("start of a clone of 64 MiB"), "{said}");
    let said = fails(&["color", &path]);
    assert!(said.contains(&format!("image in this folder is {image}")), "{said}");
    let said = fails(&["check", &path]);
    assert!(said.contains("lab run"), "{said}");
    let said = fails(&["color", &image]);
    assert!(said.contains("--layout"), "{said}");
    let said = fails(&["color", &image, "--layout", &image]);
    assert!(said.contains("0x80000000"), "{said}");
    let said = fails(&["map", &image]);
    assert!(said.contains("color IMAGE -o"), "{said}");
    let listen = ["--listen", &socket];
    let said = fails(&[&["serve", &image, "--map-from", &image][..], &listen].concat());
    assert!(said.contains("color IMAGE -o"), "{said}");
    let said = fails(&["pull", &socket, "-o", &copy]);
    assert!(said.contains("serve` prints where it listens"), "{said}");
    let said = fails(&["clone", "--kernel", &image, "--init", &image]);
    assert!(!said.contains("InternalError"), "{said}");
    assert!(!Path::new(&copy).exists());
}

#[test]
fn addresses_beyond_this_host_need_keys_and_we_make_them() {
    let folder = folder();
    let image = text(&folder.path().join("ram.bin"));
    let serve = ["serve", &image, "--no-colors", "--listen", "tcp:0.0.0.0:0"];
    let copy = text(&folder.path().join("copy"));
    for said in [fails(&serve), fails(&["pull", "tcp:192.0.2.1:7411", "-o", &copy])] {
        assert!(said.contains("kaleidoscope keys") && said.contains("--cert"), "{said}");
        assert!(!said.contains("openssl"), "{said}");
    }
    // So do as it is said, and paste what the server says.
    let made =
        kaleidoscope().args(["keys", "-o", "."]).current_dir(folder.path()).status().unwrap();
    assert!(made.success());
    let keys = ["--cert", "server.pem", "--key", "server-key.pem", "--ca", "ca.pem"];
    let (_serving, lines) =
        Serving::start(folder.path(), &[&["--listen", "tcp:0.0.0.0:0"][..], &keys].concat());
    let line = lines.last().unwrap();
    assert!(!line.contains("0.0.0.0"), "{line}");
    let words = line.strip_prefix("pull with: kaleidoscope ").unwrap().replace("HOST", "127.0.0.1");
    let mut pull = kaleidoscope();
    let output = pull.args(words.split(' ')).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(folder.path().join("copy.bin")).unwrap() == fs::read(&image).unwrap());

    // A client without keys is told of them.
    let address = words.split(' ').nth(1).unwrap();
    let said = fails(&["pull", address, "-o", &copy, "--timeout", "20"]);
    assert!(said.contains("client.pem"), "{said}");
}

#[test]
fn a_server_in_the_way_is_named() {
    let folder = folder();
    let image = text(&folder.path().join("ram.bin"));
    let socket = format!("unix:{}", text(&folder.path().join("socket")));
    let (_serving, _) =
        Serving::start(folder.path(), &["--listen", &socket, "--listen", "tcp:127.0.0.1:0"]);
    // What it cannot have is refused before anything is pulled.
    let copy = text(&folder.path().join("copy"));
    let said = fails(&["pull", &socket, "-o", &copy, "--map-to", "m.kscope"]);
    assert!(said.contains("--no-colors") && !Path::new(&copy).exists(), "{said}");
    let said = fails(&["serve", &image, "--no-colors", "--listen", &socket]);
    assert!(said.contains("choose another path"), "{said}");
    let none = format!("unix:{}/none/socket", text(folder.path()));
    let said = fails(&["serve", &image, "--no-colors", "--listen", &none]);
    assert!(said.contains("folder has to exist"), "{said}");
    let said = fails(&["serve", &image, "--no-colors", "--listen", "tcp:192.0.2.1:1"]);
    assert!(said.contains("kaleidoscope keys"), "{said}");
}

#[test]
fn a_user_that_is_turned_away_is_told_of() {
    if !rustix::process::geteuid().is_root() {
        println!("******** SKIPPED: other users: this test is not run as root ********");
        return;
    }
    let folder = folder();
    let path = folder.path();
    let program = path.join("kaleidoscope");
    // The build's folder may be closed to others.
    fs::copy(env!("CARGO_BIN_EXE_kaleidoscope"), &program).unwrap();
    let pull = |socket: &str| {
        let copy = text(&path.join(format!("{socket}.copy")));
        let address = format!("unix:{}", text(&path.join(socket)));
        let mut pull = Command::new(&program);
        pull.args(["pull", &address, "-o", &copy]).uid(NOBODY).gid(NOBODY).output().unwrap()
    };
    let named = format!("--user {NOBODY}");
    // The first keeps others from its socket, the second lets all connect and turns them away.
    for (socket, users) in [("own", &[][..]), ("others", &["--user", "1234"])] {
        let address = format!("unix:{}", text(&path.join(socket)));
        let (serving, _) = Serving::start(path, &[&["--listen", &address][..], users].concat());
        let output = pull(socket);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(&named), "{socket}: {said}");
        let said = serving.end();
        assert!(users.is_empty() || said.contains(&format!("({named} lets it in)")), "{said}");
    }
    let address = format!("unix:{}", text(&path.join("named")));
    let user = NOBODY.to_string();
    let (_serving, _) = Serving::start(path, &["--listen", &address, "--user", &user]);
    assert!(pull("named").status.success());
}
