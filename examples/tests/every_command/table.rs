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
    /// As the host allows it, with 0 or 2.
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
const MAP: &str = "{w}/map.kscope";
const SERVER: &str = "unix:{w}/parent.sock";

/// The manual pages.
const PAGES: &[(&str, usize)] = &[
    ("kaleidoscope.1", 1),
    ("kaleidoscope-bench.1", 1),
    ("kaleidoscope-bench-kvm.1", 1),
    ("kaleidoscope-capture.1", 1),
    ("kaleidoscope-capture-cloud-hypervisor.1", 1),
    ("kaleidoscope-check.1", 1),
    ("kaleidoscope-clone.1", 1),
    ("kaleidoscope-clone-qemu.1", 1),
    ("kaleidoscope-color.1", 1),
    ("kaleidoscope-completions.1", 1),
    ("kaleidoscope-dedup.1", 1),
    ("kaleidoscope-demo.1", 1),
    ("kaleidoscope-explain.1", 1),
    ("kaleidoscope-keys.1", 1),
    ("kaleidoscope-lab.1", 1),
    ("kaleidoscope-lab-run.1", 1),
    ("kaleidoscope-lab-symbols.1", 1),
    ("kaleidoscope-lab-trace.1", 1),
    ("kaleidoscope-man.1", 1),
    ("kaleidoscope-map.1", 1),
    ("kaleidoscope-pull.1", 1),
    ("kaleidoscope-record.1", 1),
    ("kaleidoscope-record-inspect.1", 1),
    ("kaleidoscope-record-make.1", 1),
    ("kaleidoscope-record-merge.1", 1),
    ("kaleidoscope-record-translate.1", 1),
    ("kaleidoscope-replay.1", 1),
    ("kaleidoscope-serve.1", 1),
    ("kaleidoscope-serve-cloud-hypervisor.1", 1),
    ("kaleidoscope-serve-firecracker.1", 1),
    ("kaleidoscope-serve-qemu.1", 1),
    ("kaleidoscope-tune.1", 1),
];

/// All commands. One that is missing here fails the test.
pub(crate) const TABLE: &[Entry] = &[
    Entry {
        words: "demo",
        run: &["--mock", "--clones", "1", "--output", "{o}"],
        written: &[("report.html", 1)],
        outputs: &[("--output", Some("report.html")), ("--output", Some("colors.png"))],
        ..NONE
    },
    Entry {
        // Without a kernel there is not more to it; with one, the lab is where it is run.
        words: "clone",
        run: &["--kernel", LAYOUT, "--init", "/bin/true"],
        end: End::Code(2),
        prints: false,
        inputs: &[
            ("--kernel", &["--init", "/bin/true"]),
            ("--initramfs", &["--kernel", LAYOUT]),
            ("--init", &["--kernel", LAYOUT]),
            ("--disk", &["--kernel", LAYOUT]),
        ],
        outputs: &[("--output", Some("frames.csv")), ("--output", Some("parent.log"))],
        ..NONE
    },
    Entry {
        // Without a VM there is not more to it; its own test has one.
        words: "clone qemu",
        run: &["--qmp", "{o}/qmp.sock", "-o", "{o}/snapshot"],
        end: End::Code(2),
        prints: false,
        base: &["--qmp", "{o}/qmp.sock"],
        others: &["--qmp", "--output", "--from", "--overlays"],
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
            "--plot",
            "{o}/p.png",
            "--frames-to",
            "{o}/f.csv",
            "--regions-to",
            "{o}/r.csv",
        ],
        written: &[("m.kscope", 1), ("p.png", 1), ("f.csv", 1), ("r.csv", 1)],
        inputs: &[("image", &[]), ("--layout", &[RAM]), ("--regs", &[RAM])],
        outputs: &[
            ("--output", None),
            ("--plot", None),
            ("--frames-to", None),
            ("--regions-to", None),
        ],
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
        run: &["{w}/map.kscope", "--plot", "{o}/p.png", "--frames-to", "{o}/f.csv"],
        written: &[("p.png", 1), ("f.csv", 1)],
        inputs: &[
            ("manifest", &[]),
            ("--verify", &["{w}/map.kscope"]),
            ("--layout", &["{w}/map.kscope"]),
        ],
        outputs: &[("--plot", None), ("--frames-to", None), ("--regions-to", None)],
        ..NONE
    },
    Entry {
        // The truth says that nothing is as it was colored.
        words: "check",
        run: &["{w}/guest"],
        end: End::Code(1),
        inputs: &[("--frames-from", &[]), ("--regions-from", &[])],
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
        run: &["{w}/guest", "{w}/other", "--plot", "{o}/d.png"],
        written: &[("d.png", 1)],
        inputs: &[("images", &[]), ("--layout", &[RAM]), ("--hit-rates-from", &[RAM])],
        outputs: &[("--hit-rates-to", None), ("--plot", None)],
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
            "--descriptor-to",
            "{o}/d.kclone",
        ],
        end: End::Stays,
        written: &[("d.kclone", 1)],
        base: &["--listen", "unix:{o}/s.sock"],
        inputs: &[
            ("image", &[]),
            ("--layout", &[RAM]),
            ("--regs", &[RAM]),
            ("--map-from", &[RAM]),
            ("--state", &[RAM]),
            ("--cert", &[RAM, "--key", "k", "--ca", "c"]),
            ("--key", &[RAM, "--cert", "k", "--ca", "c"]),
            ("--ca", &[RAM, "--cert", "k", "--key", "c"]),
        ],
        outputs: &[("--descriptor-to", None)],
        ..NONE
    },
    Entry {
        words: "serve firecracker",
        run: &["--socket", "{o}/s.sock", "--memory", RAM, "--layout", LAYOUT, "--colors", MAP],
        end: End::Stays,
        base: &["--socket", "{o}/s.sock"],
        inputs: &[
            ("--memory", &[]),
            ("--layout", &["--memory", RAM]),
            ("--colors", &["--memory", RAM, "--layout", LAYOUT]),
        ],
        others: &["--socket"],
        ..NONE
    },
    Entry {
        // Without a captured VM there is not more to it; its own test has one.
        words: "serve qemu",
        run: &["--from", "{w}/guest", "--to", "{o}/in.sock"],
        end: End::Code(2),
        prints: false,
        base: &["--to", "{o}/in.sock"],
        others: &["--from", "--to"],
        ..NONE
    },
    Entry {
        // Without a VMM, it says what it would serve, and finds nothing that listens.
        words: "serve cloud-hypervisor",
        run: &["{w}/vm", "--socket", "{o}/s.sock", "--colors", MAP, "--timeout", "0.2"],
        end: End::Code(2),
        base: &["--socket", "{o}/s.sock"],
        inputs: &[("--colors", &["{w}/vm"])],
        others: &["folder", "--socket"],
        ..NONE
    },
    Entry {
        // No VMM sends a VM.
        words: "capture cloud-hypervisor",
        run: &["--socket", "{o}/s.sock", "-o", "{o}/vm"],
        end: End::Hangs,
        prints: false,
        others: &["--socket", "--output"],
        ..NONE
    },
    Entry {
        words: "pull",
        run: &[
            SERVER,
            "-o",
            "{o}/copy.bin",
            "--layout-to",
            "{o}/l.txt",
            "--map-to",
            "{o}/m.kscope",
        ],
        written: &[("copy.bin", 1), ("l.txt", 1), ("m.kscope", 1)],
        base: &[SERVER],
        inputs: &[
            ("--cert", &["--key", "k", "--ca", "c"]),
            ("--key", &["--cert", "k", "--ca", "c"]),
            ("--ca", &["--cert", "k", "--key", "c"]),
        ],
        outputs: &[("--layout-to", None), ("--map-to", None), ("--output", None)],
        ..NONE
    },
    Entry { words: "bench", run: &["memory per frame", "--rounds", "1"], ..NONE },
    Entry {
        words: "bench kvm",
        run: &["--rounds", "1", "--max-memory", "64M"],
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
        run: &["-o", "{o}/keys"],
        written: &[("keys", 6)],
        others: &["--output"],
        ..NONE
    },
    Entry { words: "completions", run: &["bash"], ..NONE },
    Entry {
        words: "man",
        run: &["-o", "{o}"],
        written: PAGES,
        outputs: &[("--output", Some("kaleidoscope.1"))],
        ..NONE
    },
    Entry {
        // With programs that hang in place of apt and QEMU.
        words: "lab run",
        run: &["-o", "{o}/guest", "--cache", "{o}/cache"],
        end: End::Hangs,
        prints: false,
        written: &[("cache", 0)],
        others: &["--output", "--kernel", "--cache"],
        ..NONE
    },
    Entry {
        words: "lab trace",
        run: &["{w}/guest", "--workload", "idle"],
        end: End::Code(2),
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
