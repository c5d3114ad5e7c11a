//! Full disks, limits on the size of files, and outputs that are no files.

use crate::table::{End, Entry, TABLE};
use crate::world::{Ended, OLD, Run, is_root, skipped, world};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

fn writing() -> impl Iterator<Item = &'static Entry> {
    TABLE.iter().filter(|entry| !entry.written.is_empty() && entry.end == End::Code(0))
}

/// Older files under the names of the outputs.
fn put_old(entry: &Entry, run: &Run) {
    for (name, _) in entry.written.iter().filter(|(_, inside)| *inside == 1) {
        fs::write(run.output(name), "old").unwrap();
    }
}

/// Each output is the old one, or a whole new one; at least one is the old one.
fn assert_old_or_whole(entry: &Entry, run: &Run, ended: &Ended) {
    let mut has_old = entry.written.iter().all(|(_, inside)| *inside != 1);
    for (name, _) in entry.written.iter().filter(|(_, inside)| *inside == 1) {
        let found = fs::read(run.output(name)).unwrap();
        if found == b"old" {
            has_old = true;
        } else {
            assert!(is_whole(name, &found), "{}: half of {name}: {ended:?}", entry.words);
        }
    }
    assert!(has_old, "{}: nothing failed: {ended:?}", entry.words);
}

/// Whether an output has its end.
pub(crate) fn is_whole(name: &str, bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    match name.rsplit('.').next() {
        Some("png") => bytes.ends_with(b"IEND\xaeB`\x82"),
        Some("svg") => text.trim_end().ends_with("</svg>"),
        Some("html") => text.trim_end().ends_with("</html>"),
        Some("bin") => bytes.len() == 32 << 20,
        Some("csv" | "txt" | "toml") => text.ends_with('\n'),
        _ => !bytes.is_empty(),
    }
}

#[test]
fn limits_on_the_size_of_files_are_errors() {
    let _world = world();
    for entry in writing() {
        let mut run = Run::new(entry, entry.run);
        put_old(entry, &run);
        run.wrap("sh", &["-c", "ulimit -f 0; exec \"$0\" \"$@\""]);
        let (reader, writer) = std::io::pipe().unwrap();
        // A pipe, because the limit is for the file of what it says, too.
        run.command.stdout(std::process::Stdio::null()).stderr(writer);
        let start = std::time::Instant::now();
        let child = run.start();
        run.command.stderr(std::process::Stdio::null());
        let said = std::io::read_to_string(reader).unwrap();
        let ended = run.wait(child, start);
        assert_eq!(ended.status.code(), Some(2), "{}: {ended:?} {said}", entry.words);
        assert!(said.contains("File too large"), "{}: {said}", entry.words);
        assert!(said.contains("hint: the process may not write files"), "{}: {said}", entry.words);
        assert_old_or_whole(entry, &run, &ended);
        run.assert_clean(entry, &ended);
    }
}

/// A file system that is unmounted when this goes.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn full_disks_are_errors() {
    let _world = world();
    if !is_root() {
        return skipped("a small file system takes root");
    }
    for entry in writing() {
        let mut run = Run::new(entry, entry.run);
        let folder = run.path("out");
        if let Err(error) = mount("none", &folder, "tmpfs", MountFlags::empty(), c"size=256k") {
            return skipped(&format!("a small file system: {error}"));
        }
        let mounted = Mounted(folder);
        put_old(entry, &run);
        // Takes the rest, but for one page.
        let filler = run.output(&format!("{OLD}-filler"));
        let mut bytes = vec![1; 256 << 10];
        while fs::write(&filler, &bytes).is_err() {
            bytes.truncate(bytes.len() - 4096);
        }
        let ended = run.finish();
        assert_eq!(ended.status.code(), Some(2), "{}: {ended:?}", entry.words);
        assert!(ended.said.contains("No space left"), "{}: {ended:?}", entry.words);
        assert!(ended.said.contains("hint: make room"), "{}: {ended:?}", entry.words);
        assert_old_or_whole(entry, &run, &ended);
        drop(mounted);
        run.assert_clean(entry, &ended);
    }
}

fn entry(words: &str) -> &'static Entry {
    TABLE.iter().find(|entry| entry.words == words).unwrap()
}

/// The run's words with one output in place of another.
fn with_output(entry: &Entry, from: &str, to: &str) -> Vec<String> {
    entry.run.iter().map(|word| if *word == from { to } else { word }.to_owned()).collect()
}

fn run_with(entry: &Entry, from: &str, to: &str) -> Run {
    let words = with_output(entry, from, to);
    Run::new(entry, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn what_is_no_file_is_written_to_as_it_is() {
    let _world = world();
    let outputs = [
        ("color", "{o}/m.kscope"),
        ("color", "{o}/p.png"),
        ("color", "{o}/f.csv"),
        ("pull", "{o}/copy.bin"),
        ("pull", "{o}/l.txt"),
        ("record make", "{o}/a.krec"),
        ("tune", "{o}/t.toml"),
        ("replay", "{o}/plot.svg"),
        ("dedup", "{o}/d.png"),
        ("lab symbols", "{o}/s.txt"),
    ];
    for (words, output) in outputs {
        let entry = entry(words);
        let plain = {
            let mut run = Run::new(entry, entry.run);
            assert!(run.finish().status.success(), "{words}");
            fs::read(run.output(Path::new(output).file_name().unwrap().to_str().unwrap())).unwrap()
        };
        // A FIFO.
        let mut run = run_with(entry, output, "{o}/old-pipe");
        let fifo = run.output("old-pipe");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).unwrap()
        });
        let ended = run.finish();
        assert!(ended.status.success(), "{words} {output}: {ended:?}");
        assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo(), "{words} {output}");
        // Reports of time differ from run to run.
        let piped = reader.join().unwrap();
        assert_eq!(piped, plain, "{words} {output}");

        // A link, to a file that is there and to one that is not.
        for target in ["old-real", "old-new"] {
            let mut run = run_with(entry, output, "{o}/old-link");
            fs::write(run.output("old-real"), "old").unwrap();
            symlink(target, run.output("old-link")).unwrap();
            let ended = run.finish();
            assert!(ended.status.success(), "{words} {output}: {ended:?}");
            let link = fs::symlink_metadata(run.output("old-link")).unwrap();
            assert!(link.is_symlink(), "{words} {output}");
            assert_eq!(fs::read(run.output(target)).unwrap(), plain, "{words} {output}");
            run.assert_clean(entry, &ended);
        }

        // Standard output: nothing but the file goes there.
        let mut run = run_with(entry, output, "/proc/self/fd/1");
        let (mut reader, writer) = std::io::pipe().unwrap();
        run.command.stdout(writer);
        let piped = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
            bytes
        });
        let start = std::time::Instant::now();
        let child = run.start();
        run.command.stdout(std::process::Stdio::null());
        let ended = run.wait(child, start);
        assert!(ended.status.success(), "{words} {output}: {ended:?}");
        assert_eq!(piped.join().unwrap(), plain, "{words} {output}");
    }
}

#[test]
fn devices_stay_devices() {
    let _world = world();
    if !is_root() {
        return skipped("making devices takes root");
    }
    for (words, output) in [("color", "{o}/m.kscope"), ("pull", "{o}/copy.bin")] {
        let entry = entry(words);
        let mut run = run_with(entry, output, "{o}/old-null");
        let null = run.output("old-null");
        let device = rustix::fs::makedev(1, 3);
        let kind = FileType::CharacterDevice;
        if let Err(error) = mknodat(CWD, &null, kind, Mode::from_raw_mode(0o666), device) {
            return skipped(&format!("making devices: {error}"));
        }
        let ended = run.finish();
        assert!(ended.status.success(), "{words}: {ended:?}");
        assert!(fs::metadata(&null).unwrap().file_type().is_char_device(), "{words}");
    }
}
