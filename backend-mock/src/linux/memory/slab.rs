//! The slab allocator: caches, their slabs, and kernel structures in them.

use crate::MockError;
use crate::linux::KernelStyle;
use crate::linux::image::Section;
use crate::linux::kernel::{Compound, Kernel, Object, PageRecord};
use crate::linux::style::{NO_MAPPINGS, PageType};
use crate::linux::truth::Role;
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gpa, Gva};
use std::collections::BTreeMap;

/// A slab cache.
#[derive(Clone, Debug)]
struct Cache {
    number: u32,
    order: u32,
    descriptor: Gva,
    /// Free rest of the current slab.
    free: std::ops::Range<u64>,
}

/// All slab caches.
#[derive(Clone, Debug, Default)]
pub(in crate::linux) struct Slabs {
    caches: BTreeMap<String, Cache>,
    pub(in crate::linux) names: Vec<String>,
    /// Address of the list of all caches (`slab_caches`).
    pub(in crate::linux) list: Gva,
}

/// The cache of cache descriptors.
const DESCRIPTORS: &str = "kmem_cache";

impl Kernel {
    /// Allocates a zeroed object of a type from the cache of this name.
    pub(in crate::linux) fn new_object(
        &mut self,
        cache: &str,
        ty: &'static str,
    ) -> Result<Object, MockError> {
        let bytes = self.types.size_of(ty)?;
        let gpa = self.new_bytes(cache, bytes)?;
        Ok(Object { gva: Gva(self.direct(gpa)), gpa, ty })
    }

    /// Allocates a null-terminated string from the general caches; returns its address.
    pub(in crate::linux) fn new_text(&mut self, text: &str) -> Result<u64, MockError> {
        let size = (text.len() as u64 + 1).next_power_of_two().max(8);
        let gpa = self.new_bytes(&format!("kmalloc-{size}"), size)?;
        self.memory.write(gpa, text.as_bytes())?;
        Ok(self.direct(gpa))
    }

    /// Allocates an object of this size from the cache of this name, which is created if missing.
    pub(in crate::linux) fn new_bytes(&mut self, name: &str, bytes: u64) -> Result<Gpa, MockError> {
        let size = bytes.next_multiple_of(8);
        if !self.slabs.caches.contains_key(name) {
            self.new_cache(name, size)?;
        }
        let Some(cache) = self.slabs.caches.get(name).cloned() else {
            return Err(MockError::NoSuchType { name: name.to_owned() });
        };
        let free = if cache.free.end - cache.free.start < size {
            self.new_slab(&cache)?
        } else {
            cache.free
        };
        if let Some(cache) = self.slabs.caches.get_mut(name) {
            cache.free = free.start + size..free.end;
        }
        Ok(Gpa(free.start))
    }

    /// Adds a slab to a cache, full of meaningless objects.
    pub(in crate::linux) fn fill_slab(
        &mut self,
        name: &str,
        object_bytes: u64,
    ) -> Result<u32, MockError> {
        if !self.slabs.caches.contains_key(name) {
            self.new_cache(name, object_bytes)?;
        }
        let Some(cache) = self.slabs.caches.get(name).cloned() else {
            return Err(MockError::NoSuchType { name: name.to_owned() });
        };
        let slab = self.new_slab(&cache)?;
        self.fill_unique(Gpa(slab.start).gfn())?;
        Ok(1 << cache.order)
    }

    fn new_cache(&mut self, name: &str, size: u64) -> Result<(), MockError> {
        let order = match size {
            0..=512 => 0,
            513..=1024 => 1,
            1025..=4096 => 2,
            _ => 3,
        };
        let number = u32::try_from(self.slabs.names.len()).unwrap_or(0);
        self.slabs.names.push(name.to_owned());
        let mut cache = Cache { number, order, descriptor: Gva(0), free: 0..0 };
        let bytes = self.types.size_of("kmem_cache")?.next_multiple_of(8);
        let descriptor = if name == DESCRIPTORS {
            // The first descriptor describes the cache that contains it.
            let head = self.frames.take(order, |_| Role::Slab { cache: number })?;
            let start = head.gpa().0;
            cache.descriptor = Gva(self.direct(Gpa(start)));
            self.describe_slab(head, &cache)?;
            cache.free = start + bytes..start + (FRAME_SIZE << order);
            Gpa(start)
        } else {
            self.new_bytes(DESCRIPTORS, bytes)?
        };
        let object =
            Object { gva: Gva(self.direct(descriptor)), gpa: descriptor, ty: "kmem_cache" };
        cache.descriptor = object.gva;
        self.slabs.caches.insert(name.to_owned(), cache);
        // Names are constants in the image, as most real ones are, or copies.
        let text = if self.image.room(Section::Rodata) > 0x8000 {
            let gva = self.image.place(Section::Rodata, "", name.len() as u64 + 1, 1)?;
            self.store_bytes(gva.0, name.as_bytes())?;
            gva.0
        } else {
            self.new_text(name)?
        };
        self.set(object, "name", text)?;
        self.set(object, "size", size)?;
        self.set(object, "object_size", size)?;
        self.set(object, "refcount", 1)?;
        let (list, node) = (self.slabs.list.0, self.address(object, "list")?);
        self.list_append(list, node)
    }

    fn new_slab(&mut self, cache: &Cache) -> Result<std::ops::Range<u64>, MockError> {
        let number = cache.number;
        let head = self.frames.take(cache.order, |_| Role::Slab { cache: number })?;
        self.describe_slab(head, cache)?;
        let start = head.gpa().0;
        Ok(start..start + (FRAME_SIZE << cache.order))
    }

    fn describe_slab(&mut self, head: Gfn, cache: &Cache) -> Result<(), MockError> {
        let record = PageRecord {
            flags: self.style.flag("PG_slab"),
            word: self.style.page_type_word(PageType::Slab).unwrap_or(NO_MAPPINGS),
            refcount: self.style.slab_references(),
            // Counters of the slab: all objects in use.
            private: 0x20_0020,
            ..PageRecord::default()
        };
        let record = match self.style {
            KernelStyle::V5_10 | KernelStyle::V6_1 | KernelStyle::V6_12 => record,
            KernelStyle::V7_2 => PageRecord { private: 0, ..record },
        };
        self.write_compound(head, cache.order, &record, Compound::Plain)?;
        if self.style >= KernelStyle::V6_12 {
            // The slab's list overlays the field that holds the mapping of other pages.
            let list = self.page_address(head) + 16;
            let slab = Object { gva: Gva(list - 16), gpa: self.page_gpa(head)?, ty: "slab" };
            let list_at = self.part(slab, "slab_list", "list_head")?;
            self.set(list_at, "next", list)?;
            self.set(list_at, "prev", list)?;
        }
        self.page_set_cache(head, cache.descriptor)
    }
}
