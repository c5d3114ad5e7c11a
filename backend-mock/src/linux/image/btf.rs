//! Writes type information in BTF, the kernel's format (`Documentation/bpf/btf.rst`).

use crate::linux::KernelStyle;
use crate::linux::types::{Composite, Definition, Member, Type, Types};
use std::collections::BTreeMap;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

const HEADER_BYTES: u32 = 24;

/// A type under construction: its three fixed words, and the words that follow.
#[derive(Clone, Debug, Default)]
struct Record {
    name: u32,
    info: u32,
    size_or_type: u32,
    tail: Vec<u32>,
}

struct Encoder {
    /// Record `i` is type `i + 1`.
    records: Vec<Record>,
    strings: Vec<u8>,
    string_at: BTreeMap<String, u32>,
    known: BTreeMap<Type, u32>,
    named: BTreeMap<&'static str, u32>,
}

/// Encodes the `.BTF` section: all types, and functions of these names.
pub(in crate::linux) fn encode(types: &Types, style: KernelStyle, functions: &[String]) -> Vec<u8> {
    let mut encoder = Encoder {
        records: Vec::new(),
        strings: vec![0],
        string_at: BTreeMap::from([(String::new(), 0)]),
        known: BTreeMap::new(),
        named: BTreeMap::new(),
    };
    encoder.other_kinds(style);
    // Definitions refer to each other in cycles, so their numbers are assigned first.
    for (name, _) in types.definitions() {
        let id = encoder.push(Record::default());
        encoder.named.insert(*name, id);
    }
    for (name, definition) in types.definitions() {
        let record = encoder.define(name, definition);
        let id = encoder.named.get(name).copied().unwrap_or(0);
        if let Some(slot) = encoder.records.get_mut((id as usize).wrapping_sub(1)) {
            *slot = record;
        }
    }
    encoder.functions(functions);
    encoder.finish()
}

fn info(kind: u32, count: usize, flag: bool) -> u32 {
    // The schema has no types with more than 65,535 members.
    let count = u32::try_from(count).unwrap_or(0) & 0xffff;
    count | kind << 24 | u32::from(flag) << 31
}

impl Encoder {
    fn string(&mut self, text: &str) -> u32 {
        if let Some(&at) = self.string_at.get(text) {
            return at;
        }
        let at = u32::try_from(self.strings.len()).unwrap_or(0);
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        self.string_at.insert(text.to_owned(), at);
        at
    }

    fn push(&mut self, record: Record) -> u32 {
        self.records.push(record);
        u32::try_from(self.records.len()).unwrap_or(0)
    }

    fn simple(&mut self, kind: u32, name: &str, size_or_type: u32, tail: Vec<u32>) -> u32 {
        let name = self.string(name);
        self.push(Record { name, info: info(kind, 0, false), size_or_type, tail })
    }

    /// Adds one type of each kind that the schema does not use, so that readers must skip these
    /// correctly.
    fn other_kinds(&mut self, style: KernelStyle) {
        let int = self.id(&crate::linux::types::I32);
        self.simple(KIND_VOLATILE, "", int, vec![]);
        let pointer = self.id(&crate::linux::types::void_pointer());
        self.simple(KIND_RESTRICT, "", pointer, vec![]);
        let variable = self.simple(KIND_VAR, "cpu_number", int, vec![1]);
        let section = self.string(".data..percpu");
        self.push(Record {
            name: section,
            info: info(KIND_DATASEC, 1, false),
            size_or_type: 4,
            tail: vec![variable, 0, 4],
        });
        let bare = self.string("bdi_writeback_ctx");
        self.push(Record {
            name: bare,
            info: info(KIND_FWD, 0, true),
            size_or_type: 0,
            tail: vec![],
        });
        if style >= KernelStyle::V6_1 {
            self.simple(KIND_FLOAT, "double", 8, vec![]);
            self.simple(KIND_TYPE_TAG, "user", int, vec![]);
            self.simple(KIND_DECL_TAG, "bpf_kfunc", variable, vec![u32::MAX]);
            let (name, value) = (self.string("wide_flags"), self.string("WIDE_TOP"));
            self.push(Record {
                name,
                info: info(KIND_ENUM64, 1, false),
                size_or_type: 8,
                tail: vec![value, 0, 0x8000_0000],
            });
        }
    }

    fn functions(&mut self, names: &[String]) {
        let int = self.id(&crate::linux::types::I32);
        let pointer = self.id(&crate::linux::types::pointer("task_struct"));
        for (number, name) in names.iter().enumerate() {
            // Eight functions share a prototype; parameters have names.
            let parameters = number / 8 % 3;
            let prototype = if number % 8 == 0 {
                let (task, count) = (self.string("task"), self.string("count"));
                let tail = [task, pointer, count, int].into_iter().take(2 * parameters).collect();
                self.push(Record {
                    name: 0,
                    info: info(KIND_FUNC_PROTO, parameters, false),
                    size_or_type: int,
                    tail,
                })
            } else {
                u32::try_from(self.records.len() - number % 8 + 1).unwrap_or(0)
            };
            self.simple(KIND_FUNC, name, prototype, vec![]);
        }
    }

    /// The number of a type, which is added if missing.
    fn id(&mut self, ty: &Type) -> u32 {
        match ty {
            Type::Void => return 0,
            Type::Named(name) => {
                if let Some(&id) = self.named.get(name) {
                    return id;
                }
            }
            Type::Int(..)
            | Type::Function
            | Type::Pointer(_)
            | Type::Const(_)
            | Type::Array(..)
            | Type::Anonymous(_) => {}
        }
        if let Some(&id) = self.known.get(ty) {
            return id;
        }
        let id = match ty {
            Type::Void => 0,
            Type::Named(name) => self.simple(KIND_FWD, name, 0, vec![]),
            Type::Int(name, size, signed) => {
                let encoding = u32::from(*signed) | u32::from(*name == "char") << 1;
                self.simple(KIND_INT, name, *size, vec![(encoding << 24) | (size * 8)])
            }
            Type::Function => self.simple(KIND_FUNC_PROTO, "", 0, vec![]),
            Type::Pointer(target) => {
                let target = self.id(target);
                self.simple(KIND_PTR, "", target, vec![])
            }
            Type::Const(inner) => {
                let inner = self.id(inner);
                self.simple(KIND_CONST, "", inner, vec![])
            }
            Type::Array(inner, length) => {
                let index = self.id(&crate::linux::types::I32);
                let inner = self.id(inner);
                self.simple(KIND_ARRAY, "", 0, vec![inner, index, *length])
            }
            Type::Anonymous(composite) => {
                let record = self.composite("", composite);
                self.push(record)
            }
        };
        self.known.insert(ty.clone(), id);
        id
    }

    fn define(&mut self, name: &str, definition: &Definition) -> Record {
        match definition {
            Definition::Composite(composite) => self.composite(name, composite),
            Definition::Typedef(ty) => {
                let target = self.id(ty);
                let name = self.string(name);
                Record {
                    name,
                    info: info(KIND_TYPEDEF, 0, false),
                    size_or_type: target,
                    tail: vec![],
                }
            }
            Definition::Enumeration(values) => {
                let tail = values
                    .iter()
                    .flat_map(|&(value, number)| [self.string(value), number])
                    .collect();
                let name = self.string(name);
                Record { name, info: info(KIND_ENUM, values.len(), false), size_or_type: 4, tail }
            }
        }
    }

    fn composite(&mut self, name: &str, composite: &Composite) -> Record {
        // With bit fields, the upper byte of every member's offset is a width.
        let flag = composite.members.iter().any(|m| m.bits.is_some());
        let mut tail = Vec::with_capacity(3 * composite.members.len());
        for Member { name, ty, bit_offset, bits } in &composite.members {
            let width = if flag { bits.unwrap_or(0) << 24 } else { 0 };
            let words = [self.string(name), self.id(ty), bit_offset | width];
            tail.extend(words);
        }
        let kind = if composite.is_union { KIND_UNION } else { KIND_STRUCT };
        let info = info(kind, composite.members.len(), flag);
        Record { name: self.string(name), info, size_or_type: composite.size, tail }
    }

    fn finish(self) -> Vec<u8> {
        let words = self.records.iter().flat_map(|r| {
            [r.name, r.info, r.size_or_type].into_iter().chain(r.tail.iter().copied())
        });
        let body: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(0);
        let mut out = vec![0x9f, 0xeb, 1, 0];
        for word in [HEADER_BYTES, 0, len(&body), len(&body), len(&self.strings)] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&body);
        out.extend_from_slice(&self.strings);
        out
    }
}
