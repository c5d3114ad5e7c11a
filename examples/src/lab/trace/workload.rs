//! Workloads of clones.
//!
//! A workload is a bash script that the host sends to the agent in the clone, so that adding one
//! needs no new guest. `$SEED` is its seed: with another seed the script uses other data or other
//! files. `ask NAME` sends its standard input to a program that was running before the pause (see
//! `agent/programs.rs`), and waits until the program has executed it.

/// A named workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    /// The trace's name.
    pub(crate) name: String,
    /// A bash script; empty for an idle clone.
    pub(crate) script: String,
}

const IDLE: &str = "idle";

/// Built-in workloads: name and script.
const BUILT_IN: &[(&str, &str)] = &[
    (IDLE, ""),
    // The warm database: single rows by an index, then a third of the table.
    (
        "sql-scan",
        "ask python <<END
random.seed($SEED)
for _ in range(400):
    name = f'item {random.randrange(40000)}'
    db.execute('select price, note from item where name = ?', (name,)).fetchall()
start = random.randrange(0, 27000)
db.execute('select count(*), sum(price), max(length(note)) from item where id between ? and ?',
    (start, start + 13000)).fetchall()
END",
    ),
    // The same database from a fresh interpreter, with sorting.
    (
        "sql-fresh",
        "python3 - <<END
import random, sqlite3
random.seed($SEED)
db = sqlite3.connect('/var/lib/lab.db')
digit = random.randrange(10)
db.execute('select name, note from item where id % 10 = ? order by price', (digit,)).fetchall()
END",
    ),
    // A fresh interpreter that imports, and mostly compiles, a random choice of modules.
    (
        "python-import",
        "python3 - <<END
import importlib, random
random.seed($SEED)
modules = '''argparse ast asyncio bdb bz2 calendar cgi cmd code codecs configparser contextlib csv
dataclasses datetime decimal difflib dis doctest email.message enum fileinput fractions ftplib
getpass gettext glob gzip heapq html.parser http.client http.server imaplib inspect ipaddress json
logging.handlers lzma mailbox mimetypes multiprocessing netrc nntplib numbers optparse pathlib pdb
pickle pickletools plistlib poplib pprint profile pydoc queue random sched secrets shelve shlex
smtplib socketserver sqlite3 statistics string subprocess tarfile telnetlib tempfile textwrap timeit
tokenize trace traceback typing unittest.mock urllib.robotparser uuid wave webbrowser wsgiref.handlers
xml.etree.ElementTree xml.sax xmlrpc.client zipapp zipfile'''.split()
for name in random.sample(modules, 24):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
END",
    ),
    // Many short programs. They are chosen outside of the pipe, because bash reseeds RANDOM in
    // subshells.
    (
        "shell",
        "RANDOM=$SEED
tools=('date' 'id' 'uname -a' 'wc /etc/passwd' 'sort /etc/passwd' 'head -n 3 /usr/sbin/init'
    'md5sum /usr/bin/bash' 'expr 6 + 7' 'stat /usr' 'du -s /etc' 'df' 'env' 'basename /a/b'
    'seq 200' 'ls -l /usr/lib' 'tac /etc/passwd' 'od /etc/passwd' 'factor 1234567' 'nproc'
    'busybox ps' 'busybox free' 'cksum /usr/bin/perl' 'perl -v' 'readlink -f /bin' 'ls -R /etc')
for ((n = 0; n < 80; n++)); do
    tool=${tools[RANDOM % ${#tools[@]}]}
    $tool | tr a-z A-Z || exit
done",
    ),
    // Every third of all installed files.
    (
        "grep",
        "busybox find /usr/share /usr/lib -type f | sort | busybox awk -v s=$SEED 'NR % 3 == s % 3' |
    busybox xargs busybox grep -c kernel | wc -l",
    ),
    // A fresh interpreter that builds a heap.
    (
        "perl",
        "perl -e 'srand($SEED); my %h;
push @{$h{int rand 5000}}, \"x\" x int rand 90 for 1 .. 60000;
my @sorted = sort { @{$h{$a}} <=> @{$h{$b}} } keys %h;'",
    ),
    // Fresh memory and fresh files.
    (
        "sort",
        "busybox awk -v s=$SEED 'BEGIN {
    srand(s); for (n = 0; n < 150000; n++) print int(rand() * 1e9), n
}' >/var/tmp/numbers
sort -n /var/tmp/numbers >/var/tmp/sorted
sort -k 2 /var/tmp/sorted | md5sum",
    ),
    // Names and inodes only.
    (
        "find",
        "busybox find / -xdev -type f -links 1 ! -name '*.none' | wc -l
du -ax / | sort -n | tail -n 20
ls -lR /proc/1 /sys/devices 2>/dev/null | wc -l",
    ),
    // A folder is copied, archived and removed.
    (
        "copy",
        "cp -a /usr/lib/python3* /var/tmp/copy
busybox tar -czf /var/tmp/copy.tar.gz /var/tmp/copy/[a-f]*.py
rm -r /var/tmp/copy
sync",
    ),
    // Two warm processes read half of their heaps.
    (
        "warm-process",
        "ask python <<END
random.seed($SEED)
chosen = random.sample(heap, len(heap) // 2)
total = sum(len(object['text']) + object['next'][1] for object in chosen)
for object in chosen[:5000]:
    object['number'] += 1
END
ask perl <<END
srand($SEED);
my \\$total = 0;
for (1 .. 8000) { \\$total += \\$words{'word' . (1 + int rand 15000)}[3] }
END",
    ),
];

/// Functions for all scripts. `ask` reports failures on the console.
const PRELUDE: &str = "set -o pipefail
ask() {
    cat >/run/lab/$1.in
    local answer
    read -r answer </run/lab/$1.out
    [ \"$answer\" = done ] || { echo \"$1: $answer\" >&2; return 1; }
}
";

impl Workload {
    /// The built-in workload `name`, or `None` if there is none.
    pub(crate) fn built_in(name: &str, seed: u32) -> Option<Self> {
        let (name, script) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        Some(Self::new(name, script, seed))
    }

    /// A workload with a script of the user's.
    pub(crate) fn command(name: &str, script: &str, seed: u32) -> Self {
        Self::new(name, script, seed)
    }

    /// Names of all built-in workloads.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    fn new(name: &str, script: &str, seed: u32) -> Self {
        let name = if seed == 1 { name.to_owned() } else { format!("{name}-{seed}") };
        let script = if script.is_empty() {
            String::new()
        } else {
            format!("export SEED={seed}\n{PRELUDE}{script}\n")
        };
        Self { name, script }
    }

    /// Whether the clone stays idle.
    pub(crate) fn is_idle(&self) -> bool {
        self.script.is_empty()
    }
}

/// Whether `name` can be the name of a trace's file.
pub(crate) fn is_plain(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::process::Command;

    #[test]
    fn built_in_workloads_are_bash() {
        let names: BTreeSet<_> = Workload::names().collect();
        assert_eq!(names.len(), BUILT_IN.len());
        for name in names {
            assert!(is_plain(name), "{name}");
            let workload = Workload::built_in(name, 2).unwrap();
            assert_eq!(workload.name, format!("{name}-2"));
            assert_eq!(workload.is_idle(), name == IDLE);
            let output =
                Command::new("bash").args(["-n", "-c", &workload.script]).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
        }
        assert!(Workload::built_in("nonsense", 1).is_none());
    }

    #[test]
    fn a_seed_chooses_the_short_programs() {
        // No program is found, so that the handler prints each program's name and arguments.
        let commands = |seed| {
            let script = Workload::built_in("shell", seed).unwrap().script;
            let words = format!(
                "command_not_found_handle() {{
                    if [ \"$1\" = tr ]; then mapfile; printf %s \"${{MAPFILE[@]}}\"; else echo \"$@\"; fi
                }}
                PATH=/nonexistent
                {script}"
            );
            let output = Command::new("bash").args(["-c", &words]).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let first = commands(1);
        assert_eq!(first.lines().count(), 80);
        assert!(first.lines().any(|line| line == "expr 6 + 7"), "{first}");
        assert_eq!(first, commands(1));
        assert_ne!(first, commands(2));
    }

    #[test]
    fn a_command_gets_its_seed() {
        let workload = Workload::command("web", "echo seed $SEED $(seq 2); exit 3", 7);
        assert_eq!(workload.name, "web-7");
        let output = Command::new("bash").args(["-c", &workload.script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "seed 7 1 2\n");
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn names_cannot_leave_the_folder() {
        assert!(is_plain("sql-scan_2.a"));
        for name in ["", "a/b", "..", ".x", "a b"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }
}
