//! Writes seeds for every target into the folder `KALEIDOSCOPE_SEEDS`: the same on every machine.
//!
//! A fuzz target itself, so that it is built with all others from the same objects; run it with `-runs=0`.
#![no_main]

use kaleidoscope_core::addr::{FrameIndex, Gpa, Gva};
use kaleidoscope_core::clone::ports::Priority;
use kaleidoscope_core::clone::{CloneId, Descriptor, FreeFrames, ServerAddress};
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::dedup::HitRates;
use kaleidoscope_core::fingerprint::{Domain, Fingerprints, contents};
use kaleidoscope_core::internals::protocol::{
    Codec, Codecs, DescriptorHead, Entry, ErrorCode, Features, FetchEncoder, Hello, PageEncoder,
    PagesHead, Refusal, Stored, Welcome, checksum, descriptor_request, error_message,
};
use kaleidoscope_core::manifest::{ImageIdentity, Manifest};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::prefetch::{Access, LocalityOrder};
use kaleidoscope_core::recording::Recording;
use kaleidoscope_core::replay::{Touch, Trace};
use kaleidoscope_fuzz::{guest, payload_of};
use kaleidoscope_mock::linux::{KernelStyle, MockGuest};
use libfuzzer_sys::fuzz_target;
use std::error::Error;
use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// Changes of a guest in the format of the target `frame_table`, one of each kind in each place.
fn changes(style: u8) -> Vec<u8> {
    let mut seed = vec![style];
    for place in 0..7_u8 {
        for kind in 0..9_u8 {
            seed.extend([place, kind, kind.wrapping_mul(37), 0, place.wrapping_mul(11), kind]);
            seed.extend([5; 4]);
        }
    }
    seed
}

/// Tables of four levels in the format of the target `walker`: two pages, a large one, and a cycle.
fn tables(spec: u8) -> Vec<u8> {
    let mut seed = vec![spec, 5, 0, 0];
    seed.extend([0; 24]);
    let entries = [
        (0_u16, 0x1067_u64),
        (511, 0x1067),
        (256, 0x0067),
        (512, 0x2067),
        (513, 0x4000_00e7),
        (1024, 0x3067),
        (1025, 0x20_00e7),
        (1536, 0x4067),
        (1540, 0x8000_0000_0000_5065),
        (2048, 0x9061),
    ];
    for (place, entry) in entries {
        seed.extend(place.to_le_bytes());
        seed.extend(entry.to_le_bytes());
    }
    seed
}

/// Bytes of the image.
fn image(guest: &MockGuest, start: Gva, bytes: u64) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut out = vec![0; usize::try_from(bytes)?];
    let gpa = Gpa(start.0.wrapping_sub(guest.truth.kernel.image_offset));
    guest.memory.read(gpa, &mut out)?;
    Ok(out)
}

/// Fingerprints of every other frame.
fn fingerprints(guest: &MockGuest) -> Result<Fingerprints, Box<dyn Error>> {
    let frames = guest.memory.layout().frames();
    let chosen: Vec<_> = (0..frames).step_by(2).map(FrameIndex).collect();
    let domain = Domain::new([7; 32]);
    let found = contents(&guest.memory, &chosen, &domain, NonZeroUsize::MIN)?;
    Ok(Fingerprints::new(domain.id(), frames, chosen.into_iter().zip(found)))
}

fuzz_target!(
    init: {
        let root = std::env::var_os("KALEIDOSCOPE_SEEDS").expect("KALEIDOSCOPE_SEEDS names a folder");
        write(Path::new(&root)).expect("seeds can be written");
    },
    |_data: &[u8]| {}
);

fn write(root: &Path) -> Result<(), Box<dyn Error>> {
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let folder = root.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("seed-{name}")), bytes)
    };
    for (number, style) in (0_u8..).zip(KernelStyle::ALL) {
        let guest = guest(style);
        let name = format!("{style:?}");
        let kernel = &guest.truth.kernel;
        put("frame_table", &name, &changes(number))?;
        put("frame_table", &format!("{name}-blind"), &changes(number | 4))?;
        put("frame_table", &format!("{name}-whole"), &[number])?;
        put("walker", &name, &tables(number))?;
        put("btf", &name, &image(&guest, kernel.btf.0, kernel.btf.1)?)?;
        let symbols = image(&guest, kernel.kallsyms.0, kernel.kallsyms.1)?;
        put("kallsyms", &name, &[&[0, 0, 0], &symbols[..]].concat())?;
        put("kallsyms", &format!("{name}-whole"), &[number << 4 | 4, 0, 0])?;
        put("kallsyms", &format!("{name}-hinted"), &[number << 4 | 6, 0, 0, 9, 0, 0, 1, 2, 3])?;
        let mut page = [0; 4096];
        guest.memory.read(kernel.vmcoreinfo, &mut page)?;
        let end = page.iter().position(|&b| b == 0).unwrap_or(page.len());
        put("vmcoreinfo", &name, page.get(..end).unwrap_or(&page))?;
        let options = ColoringOptions::default().registers(guest.registers.clone());
        let coloring = color(&guest.memory, &options)?;
        let identity = ImageIdentity::of(&guest.memory, &coloring.map)?;
        let mut manifest = Manifest::new(coloring.map.clone(), identity);
        // One of them without the part that may be missing.
        manifest.fingerprints = (number > 0).then(|| fingerprints(&guest)).transpose()?;
        let table = manifest.fingerprints.clone();
        let file = manifest.to_bytes()?;
        put("manifest", &format!("{name}-file"), &[&[0], &file[..]].concat())?;
        let payload = payload_of(&file).ok_or("the manifest has no payload")?;
        put("manifest", &format!("{name}-payload"), &[&[1], &payload[..]].concat())?;
        let descriptor = Descriptor::of(&guest.memory, Some(coloring.map.clone()))?;
        let descriptor = match table {
            Some(table) => descriptor.with_fingerprints(table)?,
            None => descriptor,
        };
        let file = descriptor_file(descriptor)?;
        put("descriptor", &format!("{name}-file"), &[&[0], &file[..]].concat())?;
        let payload = payload_of(&file).ok_or("the descriptor has no payload")?;
        put("descriptor", &format!("{name}-payload"), &[&[1], &payload[..]].concat())?;
        let file = recording(coloring.map, identity).to_bytes()?;
        put("recording", &format!("{name}-file"), &[&[0], &file[..]].concat())?;
        let payload = payload_of(&file).ok_or("the recording has no payload")?;
        put("recording", &format!("{name}-payload"), &[&[1], &payload[..]].concat())?;
    }
    let plain = Descriptor::of(&guest(KernelStyle::V6_1).memory, None)?;
    let payload = payload_of(&descriptor_file(plain)?).ok_or("the descriptor has no payload")?;
    put("descriptor", "uncolored-payload", &[&[1], &payload[..]].concat())?;
    let layouts: [&[u64]; 3] = [
        &[0, 0, 0, 1 << 45],
        &[1 << 30, 9 << 45, 0, 1 << 44, 1 << 40, 1 << 44],
        &[0, 0, 1, 0x1000],
    ];
    for (number, words) in layouts.iter().enumerate() {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        put("layout", &number.to_string(), &bytes)?;
    }
    put(
        "image_headers",
        "layout",
        b"\x02# file_offset gpa size\n0x0 0x0 0x8000\n0x8000 0x100000000 0x8000\n",
    )?;
    put("image_headers", "registers", b"\x03CPU#0\nRAX=0000000000000000 RBX=0000000000000000\nRIP=ffffffff81000000 RFL=00000246\nCS =0010 0000000000000000 ffffffff 00af9b00\nGS =0000 ffff888000000000 ffffffff 00c00000\nCR0=80050033 CR2=0000000000000000 CR3=0000000001000000 CR4=000006f0\nEFER=0000000000000d01\n")?;
    put("image_headers", "elf", &elf())?;
    let ram = br#"{"vm_config":{"memory":{"size":0,"zones":[{"shared":true}]}},"memory_manager_data":{"guest_ram_mappings":[{"slot":1,"gpa":4294967296,"size":4096,"file_offset":8192},{"slot":0,"gpa":0,"size":8192}]}}"#;
    let headers = [
        [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 16, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0],
    ];
    for (number, header) in headers.iter().enumerate() {
        put("cloud_hypervisor", &number.to_string(), &[&header[..], ram].concat())?;
    }
    put("dedup", "library", &library())?;
    put("dedup", "yields", &[&[0], HitRates::shipped().to_text().as_bytes()].concat())?;
    put(
        "trace",
        "full",
        b"seq,t_us,gfn,event,access_write,source,vcpu\n0,388,1a,firstwrite,1,host,\n1,400,0x1a,touch,0,vcpu,1\n\
          2,400,100000,touch,1,vcpu,0\n3,512,1000ff,touch,,dma,\n",
    )?;
    put("trace", "least", b"gfn,t_us\nff,0\n 0 , 18446744073709551615 \n")?;
    put(
        "firecracker",
        "two",
        br#"[{"base_host_virt_addr":4096,"size":16777216,"offset":0,"page_size":4096,"page_size_kib":4096},{"base_host_virt_addr":140000000000000,"size":33554432,"offset":16777216,"page_size_kib":4096}]"#,
    )?;
    put("qemu_stream", "saved", &[&[1], &saved_vm()[..]].concat())?;
    put("qemu_stream", "requests", b"\x06\0\x02\0\x04\0\0\0\x01\0\x03\0\x10\0\0\0\0\0\0\x10\0\0\0\x10\0\x03ram\0\x01\0\x04\0\0\0\0")?;
    for (number, free_percent) in (0_u8..).zip([0, 30, 100]) {
        put("policies", &free_percent.to_string(), &faults(number, free_percent))?;
    }
    let features = Features { checksums: true, codecs: Codecs::ALL };
    put("wire_server", "hello", &[&[0], &hello(features).encode()[..]].concat())?;
    put("wire_server", "requests", &[&[9], &requests()[..]].concat())?;
    for bits in 0..8_u8 {
        let features = Features::from_bits(bits.into());
        let replies = replies(features)?;
        put(
            "wire_client",
            &format!("replies-{bits}"),
            &[&[bits << 1 | 1, 255], &replies[..]].concat(),
        )?;
        let welcome = welcome(features);
        put("wire_client", &format!("welcome-{bits}"), &[&[bits << 1, 0], &welcome[..]].concat())?;
    }
    let refusal = Welcome::refuse(Refusal::Busy, "too many");
    put("wire_client", "refusal", &[&[0, 0], &refusal[..]].concat())?;
    Ok(())
}

/// The file of a descriptor with everything that it may have.
fn descriptor_file(descriptor: Descriptor) -> Result<Vec<u8>, Box<dyn Error>> {
    let servers = ["unix:/run/k.sock", "tcp:[::1]:7411"].map(str::parse::<ServerAddress>);
    let servers = servers.into_iter().collect::<Result<_, _>>()?;
    let descriptor = descriptor
        .for_clone(CloneId([7; 16]))
        .snapshot(UNIX_EPOCH + Duration::from_secs(1 << 30))
        .with_free_frames(FreeFrames::Zero)
        .with_state(b"registers and devices".to_vec())?
        .with_servers(servers)?;
    Ok(descriptor.to_bytes()?)
}

fn hello(features: Features) -> Hello {
    Hello { features, image: [0; 32], clone: CloneId([1; 16]), batch: 64 }
}

fn welcome(features: Features) -> Vec<u8> {
    let pending = NonZeroU32::MIN.saturating_add(99);
    let welcome =
        Welcome { features, image: [2; 32], frames: pending, pending, batch: 30, descriptor: 7 };
    welcome.encode().to_vec()
}

/// Requests in the limits of the target `wire_server`.
fn requests() -> Vec<u8> {
    let mut stream = Vec::new();
    for (priority, step) in [(Priority::Prefetch, 1), (Priority::Urgent, 90)] {
        let mut encoder = FetchEncoder::new(priority, Vec::new());
        (0..5000).step_by(step).take(500).for_each(|frame| encoder.push(FrameIndex(frame)));
        stream.extend(encoder.finish());
    }
    stream.extend(descriptor_request(99_000, 1000));
    stream
}

/// One reply of each kind in the limits of the target `wire_client`.
fn replies(features: Features) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut encoder = PageEncoder::new()?;
    let (mut entries, mut payloads) = (Vec::new(), Vec::new());
    let page = [7; 4096];
    let mut send = |frame, stored, page: Option<&[u8; 4096]>, payload: &[u8]| {
        let frame = FrameIndex(frame);
        let checksum = if features.checksums { checksum(frame, page) } else { 0 };
        let bytes = u16::try_from(payload.len()).unwrap_or(0);
        entries.extend(Entry { frame, stored, bytes, checksum }.encode());
        payloads.extend_from_slice(payload);
    };
    send(3, Stored::Zero, Some(&[0; 4096]), &[]);
    send(4, Stored::Unavailable, None, &[]);
    send(5, Stored::Raw, Some(&page), &page);
    for codec in [Codec::Lz4, Codec::Zstd].into_iter().filter(|c| features.codecs.has(*c)) {
        let short = encoder.encode(codec, &page, 4096).ok_or("it compresses")?;
        send(6, Stored::Compressed(codec), Some(&page), short);
    }
    let pages = u16::try_from(entries.len() / 16)?;
    let bytes = u32::try_from(entries.len() + payloads.len())?;
    let mut stream = PagesHead { pages, bytes }.encode().to_vec();
    stream.extend(entries);
    stream.extend(payloads);
    stream.extend(DescriptorHead::new(9, b"descriptor").encode(10));
    stream.extend(b"descriptor");
    stream.extend(error_message(ErrorCode::Stopping, "good night"));
    Ok(stream)
}

/// A migration stream of QEMU: two blocks, a page of each, and one device.
fn saved_vm() -> Vec<u8> {
    let mut out = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
    out.extend(b"\0\0\0\0\0\0\x20\x04\x03ram\0\0\0\0\0\0\x10\0\x03vga\0\0\0\0\0\0\x10\0");
    out.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\x03ram\0");
    out.extend(b"\0\0\0\0\0\0\0\x02\x03vga\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    out.extend(b"\x04\0\0\0\x09\x05timer\0\0\0\0\0\0\0\x02data\x7e\0\0\0\x09\0\x06\0\0\0\x02{}");
    out
}

/// A guest and faults in the format of the target `policies`.
fn faults(seed: u8, free_percent: u8) -> Vec<u8> {
    // RAM in two parts; regions, free frames, longest run; seed; budget; costs; feedback.
    let mut file = vec![1, 0, 200, 9, 250, 20, free_percent, 12];
    file.extend([seed; 8]);
    file.extend([64, 0, 44, 1, 35, 20, 16, 64, 1]);
    for number in 0..60_u8 {
        let frame = number.wrapping_mul(37);
        file.extend([number, frame, number % 2, 0, 0, number.wrapping_mul(5)]);
        // Faults have a pause.
        if number % 16 < 10 {
            file.extend([frame, 0]);
        }
    }
    file
}

/// A recording of a run that touches every seventh frame.
fn recording(map: ColorMap, identity: ImageIdentity) -> Recording {
    let locality = LocalityOrder::new(map);
    let touch = |frame| Touch { at_us: 0, frame: FrameIndex(frame), access: Access::Read, vcpu: 0 };
    let touches = (0..locality.frames()).step_by(7).map(touch);
    Recording::from_trace(&Trace::new(touches, locality.layout()), &locality, identity)
}

/// A library with a build id in its first page.
fn library() -> Vec<u8> {
    let mut file = elf();
    // The first byte chooses; type library in place of core, and the note is another.
    file[0] = 1;
    file[17] = 3;
    let note = b"\x04\0\0\0\x08\0\0\0\x03\0\0\0GNU\0\x01\x02\x03\x04\x05\x06\x07\x08";
    file[1 + 0x100..][..note.len()].copy_from_slice(note);
    file
}

/// An ELF core dump with one segment of RAM and a note.
fn elf() -> Vec<u8> {
    let mut file = vec![0];
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut word = |bytes: usize, value: u64| file.extend(&value.to_le_bytes()[..bytes]);
    // Type core, machine x86-64, version; entry, program headers, section headers; flags; sizes and counts.
    for (bytes, value) in [(2, 4), (2, 62), (4, 1), (8, 0), (8, 64), (8, 0), (4, 0)] {
        word(bytes, value);
    }
    for value in [64, 56, 2, 0, 0, 0] {
        word(2, value);
    }
    // A note of 32 bytes at 0x100, and two frames at 0x1000.
    for header in [[4, 0x100, 0, 0, 0x20, 0, 0], [1, 0x1000, 0, 0, 0x2000, 0x2000, 0]] {
        word(4, header[0]);
        word(4, 0);
        header[1..].iter().for_each(|&value| word(8, value));
    }
    file.resize(1 + 0x100, 0);
    file.extend(
        b"\x05\0\0\0\x08\0\0\0\0\0\0\0CORE\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0",
    );
    file.resize(1 + 0x3000, 0x5a);
    file
}
