//! From a kernel to clones.

use super::report::{Figures, OfClone, Report};
use super::{Args, Way};
use crate::analysis::{color, color_memory_with};
use crate::check;
use crate::failure::Failure;
use crate::progress::Status;
use crate::replay::policies::{self, Prepared};
use crate::vm::{MOST_AHEAD, hints};
use crate::vmm::{Console, Disk, Linux, LinuxSnapshot, Platform, Software, with_program};
use kaleidoscope_core::clone::hooks::{CloneHook, Guest, HookError, Hooks, Reconfigure};
use kaleidoscope_core::clone::{CloneId, EngineOptions, LocalSource};
use kaleidoscope_core::coloring::Rules;
use kaleidoscope_core::manifest::ImageIdentity;
use kaleidoscope_core::prefetch::{AllocationForecast, FreeOrder, LocalityOrder, WriteForecast};
use kaleidoscope_core::replay::Trace;
use kaleidoscope_kvm::machine::Host;
use kaleidoscope_kvm::memory::PageSize;
use kaleidoscope_kvm::uffd::{OnDemand, SharedPageCache};
use std::ffi::OsString;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Lines of a guest's console that an error quotes.
const QUOTED: usize = 15;

/// Most images of the clone that is asked what its pages are. A frame may change and change back
/// between the two readings around one image; a frame that is wrong in each of them has a wrong
/// color.
const ROUNDS: usize = 3;

/// The time for guests that cannot tell when their work is done.
const TIME: Duration = Duration::from_secs(1);

/// What the parent is called.
pub(super) const PARENT: &str = "parent";

/// What the clone is called that is asked for its flags.
pub(super) const ASKED: &str = "clone-asked";

pub(super) fn run(args: &Args, status: &Status) -> Result<Report, Failure> {
    let host = Host::open().map_err(|error| {
        let hint = hints::of_kvm(&error);
        Failure::new(error).maybe_hint(hint)
    })?;
    status.set("booting");
    let start = Instant::now();
    let mut parent = boot(args, &host)?;
    let booted = start.elapsed();
    std::thread::sleep(args.after);

    status.set("freezing");
    let snapshot = parent.freeze().map_err(Failure::new)?;
    let (image, state) = (&*snapshot.machine.image, &snapshot.machine.state);
    let start = Instant::now();
    let registers = state.registers();
    let analysis = color_memory_with(args.coloring, image, registers, Rules::default())?;
    let colored = start.elapsed();
    let map = analysis.coloring.map;
    let identity = ImageIdentity::of(image, &map).map_err(Failure::new)?;
    let guest = policies::Guest { locality: Arc::new(LocalityOrder::new(map.clone())), identity };
    let cache =
        args.ways.contains(&Way::Staged).then(|| SharedPageCache::new(parent.machine.layout()));
    let mut forecast = WriteForecast::new();
    forecast.learn(&parent.machine.written().map_err(Failure::new)?);
    let nursery = Nursery {
        forecast,
        order: Arc::new(FreeOrder::new(&guest.locality)),
        args,
        host: &host,
        snapshot: &snapshot,
        policy: args.policy.prepare(&guest)?,
        cache: cache.transpose().map_err(Failure::new)?,
        guest,
    };
    status.set("running clones");
    let mut clones = Vec::new();
    for way in &args.ways {
        clones.extend(nursery.all(*way)?);
    }
    let check = if args.check {
        status.set("asking a clone what its pages are");
        Some(nursery.ask()?)
    } else {
        None
    };
    parent.devices.say(&words(args.tell(), PARENT)).map_err(Failure::new)?;
    works(args, &parent, PARENT, "the parent", Instant::now() + TIME)?;
    let own = parent.machine.memory_taken().map_err(Failure::new)?;
    let figures = Figures {
        kernel: map.kernel().release.clone(),
        memory_bytes: args.memory.bytes(),
        booted_seconds: booted.as_secs_f64(),
        pause_us: snapshot.machine.pause.as_secs_f64() * 1e6,
        colored_us: colored.as_secs_f64() * 1e6,
        parent_own_bytes: own,
        shared_bytes: nursery.shared()?,
        clones,
        check,
    };
    Ok(Report { map, figures })
}

/// Boots the parent, until it has said that it is warm.
fn boot(args: &Args, host: &Arc<Host>) -> Result<Linux, Failure> {
    let initramfs = match (&args.init, &args.initramfs) {
        (Some(program), _) => with_program(program).map_err(Failure::new)?,
        (None, Some(path)) => std::fs::read(path).map_err(|error| Failure::at(path, error))?,
        (None, None) => Vec::new(),
    };
    let disk = args.disk.as_deref().map(Disk::open).transpose().map_err(Failure::new)?;
    let (kernel, words) = (&*args.kernel, &*args.append);
    let software = Software { kernel, initramfs: &initramfs, words, disk };
    let console = console(args, "parent")?;
    let ram = (args.memory.mib(), args.pages());
    let mut parent = Linux::new(host, &software, ram, Arc::clone(&console)).map_err(|error| {
        Failure::new(error).hint(if args.huge_pages {
            "huge pages are set aside with `sysctl vm.nr_hugepages=N`: two MiB each, enough for the guest and for clones with copies"
        } else {
            "--kernel takes a bzImage, as a distribution's /boot/vmlinuz is, or a vmlinux; --memory is the RAM that it gets"
        })
    })?;
    parent.machine.resume().map_err(Failure::new)?;
    hears(args, &parent, &args.when, "the guest")?;
    Ok(parent)
}

/// The file of a guest's words.
pub(super) fn console_name(name: &str) -> String {
    format!("{name}.log")
}

/// Where a guest's words go.
fn console(args: &Args, name: &str) -> Result<Arc<Console>, Failure> {
    let Some(folder) = &args.output else { return Ok(Arc::new(Console::new(None))) };
    let path = folder.join(console_name(name));
    #[expect(clippy::disallowed_methods, reason = "a log is read while it grows")]
    let file = File::create(&path).map_err(|error| Failure::unwritable(&path, &error))?;
    Ok(Arc::new(Console::new(Some(file))))
}

/// Waits until a guest has said something.
fn hears(args: &Args, guest: &Linux, text: &str, who: &str) -> Result<(), Failure> {
    let console = guest.devices.console();
    let is_over = || guest.machine.ended().is_some();
    if console.wait_for(text, args.timeout, &is_over) {
        return Ok(());
    }
    let why = guest.machine.ended().unwrap_or_else(|| "it has more to do, or hangs".to_owned());
    let words = "--when and --until say what is waited for, --timeout how long, --append what the kernel is told";
    let slow = hints::of_slow_host().map_or_else(String::new, |hint| format!("{hint}\n"));
    Err(Failure::new(format_args!(
        "{who} has not said {text:?}: {why}\nits last words:\n{}",
        console.last_lines(QUOTED)
    ))
    .hint(slow + words))
}

/// Waits until a guest has done its work; one that cannot say so has until `end` for it.
fn works(args: &Args, guest: &Linux, name: &str, who: &str, end: Instant) -> Result<(), Failure> {
    if !args.until().is_empty() {
        return hears(args, guest, &words(args.until(), name), who);
    }
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
    match guest.machine.ended() {
        Some(how) => Err(Failure::new(format_args!("{who} has ended: {how}"))),
        None => Ok(()),
    }
}

/// What is said to, or by, the machine of this name.
fn words(text: &str, name: &str) -> String {
    text.replace("{id}", name).replace("\\n", "\n")
}

/// Asks the program in the guest for its own account of its memory.
fn question(number: usize) -> String {
    format!("flags {number}\n")
}

/// Tells a clone something when it runs.
struct Tell {
    devices: Arc<Platform>,
    text: String,
}

impl CloneHook for Tell {
    fn after_resume(&self, _clone: &dyn Guest, _id: CloneId) -> Result<(), HookError> {
        self.devices.say(&self.text).map_err(|error| HookError::new(error.to_string()))
    }
}

/// Where clones come from.
struct Nursery<'a> {
    args: &'a Args,
    host: &'a Arc<Host>,
    snapshot: &'a LinuxSnapshot,
    guest: policies::Guest,
    policy: Prepared,
    cache: Option<Arc<SharedPageCache>>,
    /// What a clone will write: what the parent wrote, and what the kernel gives away next.
    forecast: WriteForecast,
    order: Arc<FreeOrder>,
}

/// A clone that runs.
struct Running {
    clone: Linux,
    id: CloneId,
    /// How long its start took.
    started: Duration,
}

impl Nursery<'_> {
    /// A clone that runs, and was told something.
    fn start(&self, way: Way, name: &str, text: &str) -> Result<Running, Failure> {
        let console = console(self.args, name)?;
        let id = CloneId::random().map_err(Failure::new)?;
        let start = Instant::now();
        let made = match way {
            Way::Local | Way::Ahead => Linux::local(self.host, self.snapshot, console),
            Way::Staged | Way::Copied => {
                let on_demand = OnDemand {
                    locality: Arc::clone(&self.guest.locality),
                    policy: self.policy.build(&self.guest.locality, &Trace::default()),
                    source: Arc::new(LocalSource::new(
                        Arc::clone(&self.snapshot.machine.image) as _
                    )),
                    options: EngineOptions::default(),
                    reservation: None,
                    local_cache: None,
                    cache: self.cache.clone().filter(|_| way == Way::Staged),
                    pages: if way == Way::Copied { self.args.pages() } else { PageSize::Small },
                };
                Linux::on_demand(self.host, self.snapshot, on_demand, console)
            }
        };
        let mut clone = made.map_err(Failure::new)?;
        if way == Way::Ahead {
            let frames = self.forecast.frames(MOST_AHEAD);
            let following = AllocationForecast::new(Arc::clone(&self.order));
            clone.machine.copy_ahead(frames, Some(following)).map_err(Failure::new)?;
        }
        let text = words(text, &id.to_string());
        let mut hooks = Hooks::none().and(Tell { devices: Arc::clone(&clone.devices), text });
        if let Some(command) = &self.args.command {
            // What it prints is not part of the report.
            let command = format!("exec >&2\n{command}");
            let arguments = ["-c", &command].map(OsString::from).to_vec();
            hooks = hooks.and(Reconfigure { program: "sh".into(), arguments });
        }
        clone.machine.resume_as(id, &hooks).map_err(Failure::new)?;
        Ok(Running { clone, id, started: start.elapsed() })
    }

    /// All clones of one way at once, until each has done its work.
    fn all(&self, way: Way) -> Result<Vec<OfClone>, Failure> {
        let args = self.args;
        let begin = Instant::now();
        let mut running = Vec::new();
        for n in 0..args.clones {
            running.push(self.start(way, &format!("{}-{n}", way.name()), args.tell())?);
        }
        let end = Instant::now() + TIME;
        let mut done = Vec::new();
        for (n, Running { clone, id, started }) in running.iter().enumerate() {
            let id = id.to_string();
            works(args, clone, &id, &format!("{} clone {n}", way.name()), end)?;
            let statistics = clone.machine.engine().map(|engine| engine.statistics());
            let total = statistics.as_ref().map(|s| s.total()).unwrap_or_default();
            done.push(OfClone {
                way: way.name(),
                id,
                start_us: started.as_secs_f64() * 1e6,
                done_us: begin.elapsed().as_secs_f64() * 1e6,
                faults: total.faults,
                prefetched_frames: total.prefetched,
                moved_bytes: statistics.map_or(0, |s| s.bytes()),
                own_bytes: clone.machine.memory_taken().map_err(Failure::new)?,
            });
        }
        Ok(done)
    }

    /// Has one more clone say what each of its pages is, before and after it is snapshotted itself,
    /// and judges what is found in its memory at that instant. It begins as the parent was when
    /// it was snapshotted, but goes on while it looks: the parent's colors are of another instant.
    fn ask(&self) -> Result<check::FrameFindings, Failure> {
        let mut clone = self.start(Way::Local, "clone-asked", &question(0))?.clone;
        let mut before = self.flags(&clone, 0)?;
        let mut suspects = None;
        let mut round = 1;
        loop {
            let snapshot = clone.freeze().map_err(Failure::new)?.machine;
            clone.devices.say(&question(round)).map_err(Failure::new)?;
            let after = self.flags(&clone, round)?;
            let (image, registers) = (&*snapshot.image, snapshot.state.registers());
            let map = color(image, registers, Rules::default())?;
            let map = map.coloring.map;
            let findings = check::frames([&before, &after], &map, suspects.as_ref());
            let findings = findings.map_err(Failure::new)?;
            if findings.wrong_gfns.is_empty() || round == ROUNDS {
                return Ok(findings);
            }
            suspects = Some(findings.wrong_gfns);
            before = after;
            round += 1;
        }
    }

    /// The clone's answer to a question: runs of `/proc/kpageflags`.
    fn flags(&self, clone: &Linux, number: usize) -> Result<Vec<u8>, Failure> {
        let answered = format!("runs of flags {number}");
        hears(self.args, clone, &answered, "the clone that is asked for its flags")?;
        Ok(clone.devices.console().take_data())
    }

    /// Memory that the clones share, beside the parent's.
    fn shared(&self) -> Result<u64, Failure> {
        self.cache.as_ref().map_or(Ok(0), |cache| cache.taken().map_err(Failure::new))
    }
}
