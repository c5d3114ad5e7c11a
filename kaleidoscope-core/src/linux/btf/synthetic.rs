//! Writes BTF for tests. Follows the format description and shares no code with the parser.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

/// BTF under construction.
#[derive(Default)]
pub(super) struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self { strings: vec![0], ..Self::default() }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend(text.bytes());
        self.strings.push(0);
        at
    }

    /// Adds a type of any kind; returns its number.
    pub(super) fn add(
        &mut self,
        name: &str,
        kind: u32,
        flag: bool,
        vlen: usize,
        size_or_type: u32,
        trailing: &[u32],
    ) -> u32 {
        let info = kind << 24 | u32::from(flag) << 31 | u32::try_from(vlen).unwrap();
        let name = self.string(name);
        let words = [name, info, size_or_type];
        self.types.extend(words.iter().chain(trailing).flat_map(|word| word.to_le_bytes()));
        self.count += 1;
        self.count
    }

    pub(super) fn int(&mut self, name: &str, bytes: u32) -> u32 {
        self.add(name, 1, false, 0, bytes, &[bytes * 8])
    }

    pub(super) fn array(&mut self, element: u32, length: u32) -> u32 {
        self.add("", 3, false, 0, 0, &[element, element, length])
    }

    /// A struct (kind 4) or union (kind 5) with members (name, type, bit offset), without the flag.
    pub(super) fn composite(
        &mut self,
        kind: u32,
        name: &str,
        bytes: u32,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        let words: Vec<u32> =
            members.iter().flat_map(|&(name, id, bits)| [self.string(name), id, bits]).collect();
        self.add(name, kind, false, members.len(), bytes, &words)
    }

    /// As `composite`, with the flag: members are (name, type, bit offset, bitfield width).
    pub(super) fn bitfields(
        &mut self,
        kind: u32,
        name: &str,
        bytes: u32,
        members: &[(&str, u32, u32, u32)],
    ) -> u32 {
        let words: Vec<u32> = members
            .iter()
            .flat_map(|&(name, id, bits, width)| [self.string(name), id, width << 24 | bits])
            .collect();
        self.add(name, kind, true, members.len(), bytes, &words)
    }

    pub(super) fn enumeration(
        &mut self,
        name: &str,
        signed: bool,
        constants: &[(&str, i32)],
    ) -> u32 {
        let words: Vec<u32> = constants
            .iter()
            .flat_map(|&(name, value)| [self.string(name), value.cast_unsigned()])
            .collect();
        self.add(name, 6, signed, constants.len(), 4, &words)
    }

    pub(super) fn enumeration64(&mut self, name: &str, constants: &[(&str, u64)]) -> u32 {
        let halves = |value: u64| {
            [u32::try_from(value & 0xffff_ffff).unwrap(), u32::try_from(value >> 32).unwrap()]
        };
        let words: Vec<u32> = constants
            .iter()
            .flat_map(|&(name, value)| [self.string(name), halves(value)[0], halves(value)[1]])
            .collect();
        self.add(name, 19, false, constants.len(), 8, &words)
    }

    /// The finished bytes, with a header of `header` bytes (at least 24).
    pub(super) fn finish(&self, header: u32) -> Vec<u8> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let words = [header, 0, length(&self.types), length(&self.types), length(&self.strings)];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.resize(usize::try_from(header).unwrap(), 0xee);
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }
}
