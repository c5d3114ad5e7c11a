//! What each command is run with.

/// A command and how to run it. `{w}` stands for the folder of what is there to read, `{o}` for an
/// empty folder for outputs.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) words: &'static str,
    /// A run that does something.
    pub(crate) run: &'static [&'static str],
    pub(crate) end: End,
    /// Whether it prints something when it has ended.
    pub(crate) prints: bool,
    /// What it leaves in `{o}`: files, or folders with so many files.
    pub(crate) written: &'static [(&'static str, usize)],
    /// What every run needs but the arguments below.
    pub(crate) base: &'static [&'static str],
    /// Arguments that are files to read, each with others that it needs.
    pub(crate) inputs: &'static [(&'static str, &'static [&'static str])],
    /// Arguments that are files to write, or folders in which a file of that name is written.
    pub(crate) outputs: &'static [(&'static str, Option<&'static str>)],
    /// Arguments that are other paths.
    pub(crate) others: &'static [&'static str],
}

/// How a run ends that is left alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// With this exit code.
    Code(i32),
    /// As the host allows it, with 0 or 1.
    Either,
    /// Not at all; told to end by a signal, with success.
    Stays,
    /// Not at all; it dies of a signal.
    Hangs,
}

const NONE: Entry = Entry {
    words: "",
    run: &[],
    end: End::Code(0),
    prints: true,
    written: &[],
    base: &[],
    inputs: &[],
    outputs: &[],
    others: &[],
};

const RAM: &str = "{w}/guest/ram.bin";
const LAYOUT: &str = "{w}/guest/layout.txt";
const REGS: &str = "{w}/guest/regs.txt";
const TRACE: &str = "{w}/guest/traces/one.csv";
const SERVER: &str = "unix:{w}/parent.sock";

/// All commands. One that is missing here fails the test.
pub(crate) const TABLE: &[Entry] = &[
    Entry {
        words: "demo",
        run: &["--mock", "--clones", "1", "--out", "{o}"],
        written: &[("report.html", 1)],
        outputs: &[("--out", Some("report.html")), ("--out", Some("colors.png"))],
        ..NONE
    },
    Entry {
        // Without a kernel there is not more to it; with one, the lab is where it is run.
        words: "clone",
        run: &["--kernel", LAYOUT, "--init", "/bin/true"],
        end: End::Code(1),
        prints: false,
        inputs: &[
            ("--kernel", &["--init", "/bin/true"]),
            ("--initramfs", &["--kernel", LAYOUT]),
            ("--init", &["--kernel", LAYOUT]),
            ("--disk", &["--kernel", LAYOUT]),
        ],
        outputs: &[("--out", Some("frames.csv")), ("--out", Some("parent.log"))],
        ..NONE
    },
    Entry {
        words: "color",
        run: &[
            RAM,
            "--layout",
            LAYOUT,
            "--regs",
            REGS,
            "-o",
            "{o}/m.kscope",
            "--png",
            "{o}/p.png",
            "--frames",
            "{o}/f.csv",
            "--regions",
            "{o}/r.csv",
        ],
        written: &[("m.kscope", 1), ("p.png", 1), ("f.csv", 1), ("r.csv", 1)],
        inputs: &[("image", &[]), ("--layout", &[RAM]), ("--regs", &[RAM])],
        outputs: &[("--output", None), ("--png", None), ("--frames", None), ("--regions", None)],
        ..NONE
    },
    Entry {
        words: "explain",
        run: &[RAM, "--layout", LAYOUT, "--gpa", "0x1000"],
        inputs: &[("image", &[]), ("--layout", &[]), ("--regs", &[])],
        ..NONE
    },
    Entry {
        words: "map",
        run: &["{w}/map.kscope", "--png", "{o}/p.png", "--frames", "{o}/f.csv"],
        written: &[("p.png", 1), ("f.csv", 1)],
        inputs: &[
            ("manifest", &[]),
            ("--verify", &["{w}/map.kscope"]),
            ("--layout", &["{w}/map.kscope"]),
        ],
        outputs: &[("--png", None), ("--frames", None), ("--regions", None)],
        ..NONE
    },
    Entry {
        // The truth says that nothing is as it was colored.
        words: "check",
        run: &["{w}/guest"],
        end: End::Code(1),
        inputs: &[("--frames", &[]), ("--regions", &[])],
        others: &["guest_dir", "--truth"],
        ..NONE
    },
    Entry {
        words: "replay",
        run: &[
            RAM,
            "--layout",
            LAYOUT,
            "--trace",
            TRACE,
            "--policy",
            "demand,paper",
            "--plot",
            "{o}/plot.svg",
        ],
        written: &[("plot.svg", 1)],
        inputs: &[
            ("image", &["--trace", TRACE]),
            ("--layout", &[RAM, "--trace", TRACE]),
            ("--regs", &[RAM, "--trace", TRACE]),
            ("--trace", &[RAM]),
        ],
        outputs: &[("--plot", None)],
        ..NONE
    },
    Entry {
        words: "dedup",
        run: &["{w}/guest", "{w}/other", "--png", "{o}/d.png"],
        written: &[("d.png", 1)],
        inputs: &[("images", &[]), ("--layout", &[RAM]), ("--yields", &[RAM])],
        outputs: &[("--learn", None), ("--png", None)],
        ..NONE
    },
    Entry {
        words: "tune",
        run: &["{w}/guest", "-o", "{o}/t.toml", "--rounds", "1"],
        written: &[("t.toml", 1)],
        inputs: &[("guests", &[]), ("--start", &["{w}/guest"])],
        outputs: &[("--output", None)],
        ..NONE
    },
    Entry {
        words: "serve",
        run: &[
            RAM,
            "--layout",
            LAYOUT,
            "--listen",
            "unix:{o}/s.sock",
            "--descriptor",
            "{o}/d.kclone",
        ],
        end: End::Stays,
        written: &[("d.kclone", 1)],
        base: &["--listen", "unix:{o}/s.sock"],
        inputs: &[
            ("image", &[]),
            ("--layout", &[RAM]),
            ("--regs", &[RAM]),
            ("--manifest", &[RAM]),
            ("--state", &[RAM]),
            ("--cert", &[RAM, "--key", "k", "--ca", "c"]),
            ("--key", &[RAM, "--cert", "k", "--ca", "c"]),
            ("--ca", &[RAM, "--cert", "k", "--key", "c"]),
        ],
        outputs: &[("--descriptor", None)],
        ..NONE
    },
    Entry {
        words: "pull",
        run: &[SERVER, "-o", "{o}/copy.bin", "--layout", "{o}/l.txt", "--manifest", "{o}/m.kscope"],
        written: &[("copy.bin", 1), ("l.txt", 1), ("m.kscope", 1)],
        base: &[SERVER],
        inputs: &[
            ("--cert", &["--key", "k", "--ca", "c"]),
            ("--key", &["--cert", "k", "--ca", "c"]),
            ("--ca", &["--cert", "k", "--key", "c"]),
        ],
        outputs: &[("--layout", None), ("--manifest", None), ("--output", None)],
        ..NONE
    },
    Entry { words: "bench", run: &["memory per frame", "--rounds", "1"], ..NONE },
    Entry {
        words: "bench kvm",
        run: &["--rounds", "1", "--largest", "64"],
        end: End::Either,
        ..NONE
    },
    Entry {
        words: "record make",
        run: &[RAM, "--layout", LAYOUT, "--trace", TRACE, "-o", "{o}/a.krec"],
        written: &[("a.krec", 1)],
        inputs: &[
            ("image", &["--trace", TRACE]),
            ("--layout", &[RAM, "--trace", TRACE]),
            ("--regs", &[RAM, "--trace", TRACE]),
            ("--trace", &[RAM]),
        ],
        outputs: &[("--output", None)],
        ..NONE
    },
    Entry {
        words: "record merge",
        run: &["{w}/one.krec", "{w}/one.krec", "-o", "{o}/a.krec"],
        written: &[("a.krec", 1)],
        inputs: &[("recordings", &[])],
        outputs: &[("--output", None)],
        ..NONE
    },
    Entry {
        words: "record inspect",
        run: &["{w}/one.krec"],
        inputs: &[("recording", &[])],
        ..NONE
    },
    Entry {
        words: "record translate",
        run: &["{w}/one.krec", RAM, "--layout", LAYOUT, "-o", "{o}/t.csv"],
        written: &[("t.csv", 1)],
        inputs: &[
            ("recording", &[RAM]),
            ("image", &["{w}/one.krec"]),
            ("--layout", &["{w}/one.krec", RAM]),
            ("--regs", &["{w}/one.krec", RAM]),
        ],
        outputs: &[("--output", None)],
        ..NONE
    },
    Entry {
        words: "keys",
        run: &["{o}/keys"],
        written: &[("keys", 6)],
        others: &["folder"],
        ..NONE
    },
    Entry {
        // With programs that hang in place of apt and QEMU.
        words: "lab run",
        run: &["{o}/guest", "--cache", "{o}/cache"],
        end: End::Hangs,
        prints: false,
        written: &[("cache", 0)],
        others: &["out", "--kernel", "--cache"],
        ..NONE
    },
    Entry {
        words: "lab trace",
        run: &["{w}/guest", "--workload", "idle"],
        end: End::Code(1),
        prints: false,
        others: &["guest"],
        ..NONE
    },
    Entry {
        words: "lab symbols",
        run: &["{w}/guest", "-o", "{o}/s.txt", "--judge", "{w}/guest"],
        written: &[("s.txt", 1)],
        inputs: &[("guests", &[]), ("--judge", &["{w}/guest"])],
        outputs: &[("--output", None)],
        ..NONE
    },
    Entry { words: "lab-agent", run: &["--actor", "heap"], end: End::Hangs, ..NONE },
    Entry { words: "undo-guard", prints: false, ..NONE },
    Entry { words: "commands", ..NONE },
];
