//! Names with arbitrary bytes: terminal escapes, newlines, invalid UTF-8.

use super::linux;
use kaleidoscope_core::guest_os::name::{escape, unescape};
use kaleidoscope_core::manifest::{ImageIdentity, Limits, Manifest};
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest};

/// Start of a hostile name.
const ODD: &[u8] = b"\n\x1b]\\\xff\xc3\"";

/// Offsets in memory of a name with its terminator.
fn offsets(guest: &MockGuest, name: &str) -> Vec<usize> {
    let bytes = guest.memory.bytes();
    let text = format!("{name}\0").into_bytes();
    let found = bytes.windows(text.len()).enumerate().filter(|(_, window)| *window == text);
    found.map(|(at, _)| at).collect()
}

/// Replaces the start of a name wherever it occurs; returns the new bytes.
fn make_odd(guest: &mut MockGuest, name: &str) -> Vec<u8> {
    let mut new = name.as_bytes().to_vec();
    new[..ODD.len()].copy_from_slice(ODD);
    for at in offsets(guest, name) {
        guest.memory.bytes_mut()[at..at + new.len()].copy_from_slice(&new);
    }
    new
}

#[test]
fn names_keep_their_bytes() {
    for style in KernelStyle::ALL {
        let mut guest = GuestBuilder::new(style).ram_bytes(32 << 20).seed(81).build().unwrap();
        // A file with a name that is long enough and unique.
        let is_fit = |path: &str| {
            let name = path.rsplit('/').next().unwrap();
            name.len() > ODD.len() && offsets(&guest, name).len() == 1
        };
        let paths = guest.truth.files.iter().filter_map(|file| file.path.clone());
        let path = paths.into_iter().find(|path| is_fit(path)).unwrap();
        let (folder, name) = path.rsplit_once('/').unwrap();
        let (folder, name) = (folder.to_owned(), name.to_owned());
        let new = make_odd(&mut guest, &name);
        let task = guest.truth.tasks.iter().find(|t| t.space.is_some() && t.comm.len() > ODD.len());
        let task = task.map(|task| (task.pid, task.comm.clone()));
        let comm = task.map(|(pid, comm)| (pid, make_odd(&mut guest, &comm)));

        let found = linux(&guest.memory, &guest.registers);
        let expected = format!("{folder}/{}", escape(&new));
        let region = found.map.regions().iter().find(|r| r.name.ends_with(&expected));
        let region = region.unwrap_or_else(|| panic!("{style:?}: no {expected}")).clone();
        assert!(unescape(&region.name).ends_with(&[b"/", &new[..]].concat()), "{style:?}");
        assert!(expected.contains("\\x0a\\x1b]\\\\\\xff\\xc3\""), "{expected}");
        if let Some((pid, comm)) = comm {
            let process = found.processes().iter().find(|p| p.pid == Some(pid)).unwrap();
            assert_eq!(unescape(&process.name), comm, "{style:?}");
        }
        let all = found.map.regions().iter().map(|r| &r.name);
        for name in all.chain(found.processes().iter().map(|p| &p.name)) {
            assert!(!name.contains(char::is_control), "{name:?}");
        }

        // A manifest keeps names unchanged.
        let identity = ImageIdentity::of(&guest.memory, &found.map).unwrap();
        let bytes = Manifest::new(found.map, identity).to_bytes().unwrap();
        let read = Manifest::from_bytes(&bytes, &Limits::default()).unwrap();
        assert!(read.map.regions().contains(&region), "{style:?}");
    }
}
