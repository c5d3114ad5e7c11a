//! Runs every command that there is where things go wrong: standard output and error that are
//! closed or full, full disks, signals at random instants, outputs that are inputs, images of 64
//! GiB of nothing, no permission. No command may panic, leave anything behind, or end with a wrong
//! exit code.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod interrupted;
mod table;
mod units;
mod unwritable;
mod world;

use std::fs::{self, File};
use std::io::pipe;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use table::{End, Entry, TABLE};
use world::{Ended, Run, is_root, skipped, world};

/// Every entry whose command ends by itself.
fn ending() -> impl Iterator<Item = &'static Entry> {
    TABLE.iter().filter(|entry| matches!(entry.end, End::Code(_) | End::Either))
}

/// The exit code is the entry's.
fn assert_as_usual(entry: &Entry, ended: &Ended) {
    let code = ended.status.code();
    let is_right = match entry.end {
        End::Code(expected) => code == Some(expected),
        End::Either => matches!(code, Some(0 | 2)),
        End::Stays | End::Hangs => false,
    };
    assert!(is_right, "{}: {ended:?}", entry.words);
}

#[test]
fn every_command_is_in_the_table() {
    let world = world();
    let output = world.command(&["commands"], &world.path("")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().count() > 20, "{text}");
    for line in text.lines() {
        let (words, paths) = line.split_once('\t').unwrap();
        let found = TABLE.iter().find(|entry| entry.words == words);
        let entry = found.unwrap_or_else(|| panic!("`{words}` is not run by this test"));
        for path in paths.split_whitespace() {
            let is_input = entry.inputs.iter().any(|(name, _)| *name == path);
            let is_output = entry.outputs.iter().any(|(name, _)| *name == path);
            let is_known = is_input || is_output || entry.others.contains(&path);
            assert!(is_known, "`{words}`: {path} is neither an input nor an output to this test");
        }
    }
    assert_eq!(TABLE.len(), text.lines().count());
}

#[test]
fn results_that_nobody_reads_are_no_failure() {
    let _world = world();
    for entry in ending() {
        let mut run = Run::new(entry, entry.run);
        let (reader, gone) = pipe().unwrap();
        drop(reader);
        run.command.stdout(gone.try_clone().unwrap()).stderr(gone);
        let ended = run.finish();
        assert_as_usual(entry, &ended);
        run.assert_clean(entry, &ended);
        if entry.end == End::Code(0) {
            assert_eq!(run.outputs().len(), entry.written.len(), "{}", entry.words);
        }
        // Without them altogether: the program is started with both closed.
        let mut run = Run::new(entry, entry.run);
        run.wrap("sh", &["-c", "exec \"$0\" \"$@\" >&- 2>&-"]);
        let ended = run.finish();
        assert_as_usual(entry, &ended);
        run.assert_clean(entry, &ended);
    }
}

#[test]
fn results_that_cannot_be_written_are_failures() {
    let _world = world();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for entry in ending() {
        let mut run = Run::new(entry, entry.run);
        run.command.stdout(full());
        let ended = run.finish();
        run.assert_clean(entry, &ended);
        if entry.prints && entry.end == End::Code(0) {
            assert_eq!(ended.status.code(), Some(2), "{}: {ended:?}", entry.words);
            assert!(ended.said.contains("error: cannot write the result: "), "{ended:?}");
            assert!(ended.said.contains("hint: make room"), "{ended:?}");
        }
        let mut run = Run::new(entry, entry.run);
        run.command.stderr(full());
        let ended = run.finish();
        assert_as_usual(entry, &ended);
        run.assert_clean(entry, &ended);
    }
}

#[test]
fn help_is_a_result_too() {
    let world = world();
    let helps = TABLE.iter().map(|entry| format!("{} --help", entry.words));
    for line in helps.chain(["--help".to_owned(), "--version".to_owned()]) {
        let words: Vec<_> = line.split(' ').collect();
        let run = |stdout: Stdio| {
            let mut command = world.command(&words, &world.path(""));
            let output = command.stdout(stdout).output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (code, said) = run(full.into());
        assert_eq!(code, Some(2), "{line}: {said}");
        assert!(said.contains("cannot write the result"), "{line}: {said}");
        let (reader, gone) = pipe().unwrap();
        drop(reader);
        assert_eq!(run(gone.into()), (Some(0), String::new()), "{line}");
        assert_eq!(run(Stdio::null()), (Some(0), String::new()), "{line}");
    }
    let (reader, gone) = pipe().unwrap();
    drop(reader);
    let mut wrong = world.command(&["no-such-command"], &world.path(""));
    assert_eq!(wrong.stderr(gone).status().unwrap().code(), Some(2));
}

#[test]
fn outputs_are_never_inputs() {
    let _world = world();
    for entry in TABLE {
        for (output, name) in entry.outputs {
            for (input, with) in entry.inputs {
                let shared = format!("{{o}}/{}", name.unwrap_or("old.bin"));
                let mut words = base(entry, output);
                words.extend(*with);
                let give = |words: &mut Vec<&str>, argument: &'static str, value: &'static str| {
                    if argument.starts_with('-') {
                        words.push(argument);
                    }
                    words.push(value);
                };
                let shared: &'static str = Box::leak(shared.into_boxed_str());
                give(&mut words, output, if name.is_some() { "{o}" } else { shared });
                // What has a place comes last, behind all that `with` puts there.
                give(&mut words, input, shared);
                let is_first = !input.starts_with('-') && input != &"images" && with.is_empty();
                let run_words = if is_first { words.clone() } else { words };
                refused(entry, &run_words, name.unwrap_or("old.bin"), "it is read too");
            }
            for (other, other_name) in entry.outputs {
                let is_file = name.is_none() && other_name.is_none();
                if other == output || *other == "--output" || !is_file {
                    continue;
                }
                let (input, with) = entry.inputs.first().unwrap();
                let mut words = base(entry, output);
                words.extend([*output, "{o}/old.bin", *other, "{o}/old.bin"]);
                words.extend(*with);
                if input.starts_with('-') {
                    words.push(input);
                }
                words.push("{w}/map.kscope");
                refused(entry, &words, "old.bin", "it is written twice");
            }
        }
    }
}

/// What a run needs that has this output.
fn base(entry: &Entry, output: &str) -> Vec<&'static str> {
    let needs_another = entry.words == "pull" && output != "--output";
    let another: &[&str] = if needs_another { &["--output", "{o}/copy.bin"] } else { &[] };
    [entry.base, another].concat()
}

/// The command refuses to run, and the file is as it was.
fn refused(entry: &Entry, words: &[&str], file: &str, why: &str) {
    let mut run = Run::new(entry, words);
    let path = run.output(file);
    fs::write(&path, "precious").unwrap();
    let ended = run.finish();
    let what = format!("{} {words:?}: {ended:?}", entry.words);
    if ended.status.code() == Some(2) && ended.said.contains("cannot be used with") {
        // Not with each other at all.
        return;
    }
    assert_eq!(ended.status.code(), Some(2), "{what}");
    assert!(ended.said.contains(why) && ended.said.contains("hint: "), "{what}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious", "{what}");
    fs::remove_file(path).unwrap();
    run.assert_clean(entry, &ended);
}

#[test]
fn images_of_64_gib_of_nothing_are_refused_soon() {
    let _world = world();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("ram.bin");
    File::create(&image).unwrap().set_len(64 << 30).unwrap();
    let ram = image.to_str().unwrap();
    let trace = "{w}/guest/traces/one.csv";
    let runs: [(&str, Vec<&str>); 7] = [
        ("color", vec![ram]),
        ("explain", vec![ram, "--gpa", "0x1000"]),
        ("replay", vec![ram, "--trace", trace]),
        ("dedup", vec![ram]),
        ("serve", vec![ram, "--listen", "unix:{o}/s.sock"]),
        ("record make", vec![ram, "--trace", trace, "-o", "{o}/a.krec"]),
        ("record translate", vec!["{w}/one.krec", ram]),
    ];
    for (words, arguments) in runs {
        let entry = TABLE.iter().find(|entry| entry.words == words).unwrap();
        let mut run = Run::new(entry, &arguments);
        let ended = run.finish();
        assert_eq!(ended.status.code(), Some(2), "{words}: {ended:?}");
        assert!(ended.said.contains("hint: "), "{words}: {ended:?}");
        assert!(run.outputs().is_empty(), "{words}: {:?}", run.outputs());
        run.assert_clean(entry, &ended);
    }
}

#[test]
fn without_permission_there_is_an_error() {
    if !is_root() {
        return skipped("running as a user without permissions takes root");
    }
    let world = world();
    let program = world.public_program("kaleidoscope");
    for entry in ending().filter(|entry| !entry.written.is_empty()) {
        // What is read may be read; the folder for outputs belongs to another user.
        let mut run = Run::new(entry, entry.run);
        let own = std::mem::replace(&mut run.command, Command::new(&program));
        let tmp = run.path("tmp");
        std::os::unix::fs::chown(&tmp, Some(65_534), Some(65_534)).unwrap();
        run.command.args(own.get_args()).env("TMPDIR", tmp).current_dir(world.path(""));
        run.command.uid(65_534).gid(65_534).stdin(Stdio::null()).stdout(Stdio::null());
        run.command.stderr(File::create(run.path("said")).unwrap());
        let ended = run.finish();
        assert_eq!(ended.status.code(), Some(2), "{}: {ended:?}", entry.words);
        if entry.words != "pull" {
            // That one is turned away by the server.
            assert!(ended.said.contains("Permission denied"), "{}: {ended:?}", entry.words);
        }
        assert!(run.outputs().is_empty(), "{}: {:?}", entry.words, run.outputs());
        run.assert_clean(entry, &ended);
    }
}
