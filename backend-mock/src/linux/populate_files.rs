//! The files of a guest: mounted file systems and cached files.

use super::builder::Knobs;
use super::image::Section;
use super::kernel::Kernel;
use super::vfs::{File, Vfs, encode_device};
use crate::{MockError, Rng};
use kaleidoscope_core::addr::Gva;

/// File systems and directories that files are created in.
struct Locations {
    root: usize,
    bin: usize,
    lib: usize,
    dev: usize,
    run: usize,
    shm: usize,
    /// Directories for other files.
    others: Vec<usize>,
    /// The file system with large folios.
    xfs: usize,
    /// File systems without a path: of nameless memory files, and of block devices.
    internal: usize,
    bdev: usize,
}

impl Kernel {
    /// Creates file systems, directories, cached files, memory files and block devices.
    pub(super) fn populate_files(
        &mut self,
        knobs: &Knobs,
        budget: u64,
    ) -> Result<(Vfs, Vec<File>), MockError> {
        let list = self.image.place(Section::Data, "super_blocks", 16, 8)?;
        self.list_init(list.0)?;
        let mut vfs = Vfs::default();
        let locations = self.mount_everything(&mut vfs)?;
        let mut files = Vec::new();
        self.cache_programs(&mut vfs, &locations, &mut files, budget)?;
        self.cache_others(&mut vfs, &locations, &mut files, (knobs, budget))?;
        if knobs.stale_note {
            self.cache_stale_note(&mut vfs, &locations, &mut files)?;
        }
        self.cache_memory_and_devices(&mut vfs, &locations, &mut files, budget)?;
        Ok((vfs, files))
    }

    /// Creates nested mounts, one of them twice.
    fn mount_everything(&mut self, vfs: &mut Vfs) -> Result<Locations, MockError> {
        let rootfs = self.new_file_system(vfs, "rootfs", encode_device(0, 2), "rootfs")?;
        let base = self.mount_on(vfs, rootfs, None)?;
        let ext4 = self.new_file_system(vfs, "ext4", encode_device(254, 1), "vda1")?;
        let root = self.mount_on(vfs, ext4, Some(base))?;
        let usr = self.new_directory(vfs, root, "usr")?;
        let bin = self.new_directory(vfs, usr, "bin")?;
        let lib = self.new_directory(vfs, usr, "lib")?;
        let home = self.new_directory(vfs, root, "home")?;
        let mut others = vec![home];
        let long = "a directory whose name needs more room than an entry has";
        for (parent, name) in
            [(root, "etc"), (lib, "x86_64-linux-gnu"), (root, "var"), (home, long)]
        {
            others.push(self.new_directory(vfs, parent, name)?);
        }
        let mut mount = |parent, name: &str, ty, device, id| {
            let directory = self.new_directory(vfs, parent, name)?;
            let system = self.new_file_system(vfs, ty, device, id)?;
            Ok::<_, MockError>((system, self.mount_on(vfs, system, Some(directory))?))
        };
        let dev = mount(root, "dev", "devtmpfs", encode_device(0, 6), "devtmpfs")?.1;
        let run = mount(root, "run", "tmpfs", encode_device(0, 23), "tmpfs")?.1;
        let shm = mount(dev, "shm", "tmpfs", encode_device(0, 24), "tmpfs")?.1;
        let (xfs, srv) = mount(root, "srv", "xfs", encode_device(254, 16), "vdb")?;
        let data = self.new_directory(vfs, srv, "data")?;
        others.extend([srv, data]);
        // Mounts a part of the same file system elsewhere (a bind mount).
        let at = |d: usize| {
            vfs.directories.get(d).map(|d| d.dentry).ok_or(MockError::Knobs("no such directory"))
        };
        let (data, home) = (at(data)?, at(home)?);
        self.new_mount(vfs, xfs, data, Some((ext4, home)))?;
        let internal = self.new_file_system(vfs, "tmpfs", encode_device(0, 1), "tmpfs")?;
        let bdev = self.new_file_system(vfs, "bdev", encode_device(0, 3), "bdev")?;
        for hidden in [internal, bdev] {
            let root = vfs.systems.get(hidden).map(|s| s.root);
            self.new_mount(
                vfs,
                hidden,
                root.ok_or(MockError::Knobs("no such file system"))?,
                None,
            )?;
        }
        Ok(Locations { root, bin, lib, dev, run, shm, others, xfs, internal, bdev })
    }

    /// Caches the files that processes execute or map.
    fn cache_programs(
        &mut self,
        vfs: &mut Vfs,
        locations: &Locations,
        files: &mut Vec<File>,
        budget: u64,
    ) -> Result<(), MockError> {
        let Locations { bin, lib, .. } = *locations;
        let names = [(bin, "python3.11"), (bin, "sqlite3"), (bin, "nginx")];
        for (directory, name) in
            names.into_iter().chain([(lib, "libc.so.6"), (lib, "libcrypto.so.3")])
        {
            let (mut file, _) = self.new_file(vfs, directory, name)?;
            file.is_program = true;
            let pages = (budget / 250).clamp(8, 400) + self.rng.below(16);
            let folios: Vec<_> = (0..pages).filter(|i| i % 13 != 7).map(|i| (i, 0)).collect();
            self.cache_file(files, file, &folios)?;
        }
        // A sparse file with pages at high offsets.
        let (file, _) = self.new_file(vfs, locations.root, "sparse.img")?;
        self.cache_file(files, file, &[(3, 0), (4000, 0), (300_000, 0), (1 << 26, 0)])
    }

    /// Caches files of all sizes, some of them deleted.
    fn cache_others(
        &mut self,
        vfs: &mut Vfs,
        locations: &Locations,
        files: &mut Vec<File>,
        (knobs, budget): (&Knobs, u64),
    ) -> Result<(), MockError> {
        let by_size = u32::try_from(30 + budget / 300).unwrap_or(u32::MAX);
        let wanted = u64::from(knobs.files.unwrap_or(by_size));
        let average = (budget * 28 / 100 / wanted.max(1)).max(1);
        for number in 0..wanted {
            let directory = locations.others.get(self.rng.index(locations.others.len())).copied();
            let is_long = self.rng.one_in(6);
            let long = if is_long { "-with-a-name-that-is-longer-than-most" } else { "" };
            let name = format!("file{number}{long}.dat");
            let (mut file, dentry) =
                self.new_file(vfs, directory.unwrap_or(locations.root), &name)?;
            if self.rng.one_in(20) {
                let inode = self.load(self.address(file.mapping, "host")?)?;
                let inode = self.object(Gva(inode), "inode")?;
                self.unlink(dentry, inode)?;
                file.path = None;
            }
            let large = file.fs == locations.xfs && knobs.style.large_folios();
            let folios = plan(&mut self.rng, average, large);
            self.cache_file(files, file, &folios)?;
        }
        Ok(())
    }

    /// Caches a page of a file that looks like another kernel's VMCOREINFO page.
    fn cache_stale_note(
        &mut self,
        vfs: &mut Vfs,
        locations: &Locations,
        files: &mut Vec<File>,
    ) -> Result<(), MockError> {
        let (file, _) = self.new_file(vfs, locations.root, "vmcoreinfo.txt")?;
        self.cache_file(files, file, &[(0, 0)])?;
        let stale = "OSRELEASE=5.4.0-stale\nPAGESIZE=4096\n\
                     SYMBOL(swapper_pg_dir)=ffffffff82409000\n\
                     SYMBOL(_stext)=ffffffff81000000\nNUMBER(phys_base)=0\nKERNELOFFSET=0\n";
        let page = files.last().and_then(|f: &File| f.folios.get(&0)).map(|f| f.0);
        self.memory.write(page.unwrap_or_default().gpa(), stale.as_bytes())?;
        Ok(())
    }

    fn cache_memory_and_devices(
        &mut self,
        vfs: &mut Vfs,
        locations: &Locations,
        files: &mut Vec<File>,
        budget: u64,
    ) -> Result<(), MockError> {
        let pages = |thousandths: u64| 0..budget * thousandths / 1000 + 1;
        for (directory, name) in
            [(locations.run, "journal"), (locations.shm, "sem.pool"), (locations.shm, "ring")]
        {
            let (file, _) = self.new_file(vfs, directory, name)?;
            let folios: Vec<_> = pages(8).map(|i| (i * 5 / 4, 0)).collect();
            self.cache_file(files, file, &folios)?;
        }
        for name in ["memfd:jit", "SYSV0001c0de"] {
            let file = self.new_nameless(vfs, locations.internal, name)?;
            let folios: Vec<_> = pages(4).map(|i| (i, 0)).collect();
            self.cache_file(files, file, &folios)?;
        }
        for (name, device) in [("vda", encode_device(254, 0)), ("vda1", encode_device(254, 1))] {
            let file = self.new_block_device(vfs, locations.bdev, locations.dev, name, device)?;
            let folios: Vec<_> = pages(15).map(|i| (i * i / 3 + i, 0)).collect();
            self.cache_file(files, file, &folios)?;
        }
        Ok(())
    }

    /// Fills and indexes a file's cache, and adds the file to the truth.
    fn cache_file(
        &mut self,
        files: &mut Vec<File>,
        mut file: File,
        folios: &[(u64, u32)],
    ) -> Result<(), MockError> {
        let number = u32::try_from(files.len()).unwrap_or(u32::MAX);
        self.fill_cache(&mut file, number, folios)?;
        let end = folios.last().map_or(1, |f| f.0 + (1 << f.1));
        let shadows: Vec<u64> = (0..self.rng.below(4)).map(|_| self.rng.below(end + 8)).collect();
        self.index_cache(&file, &shadows)?;
        files.push(file);
        Ok(())
    }
}

/// Chooses the cached pages of a file: about `average`, with holes; folios of several pages if
/// `large`.
fn plan(rng: &mut Rng, average: u64, large: bool) -> Vec<(u64, u32)> {
    let pages = match rng.below(8) {
        0 => 1,
        1 => average * 4,
        _ => 1 + rng.below(average * 3 / 2),
    };
    let mut out = Vec::new();
    let (mut index, mut done) = (if rng.one_in(5) { rng.below(100) } else { 0 }, 0);
    while done < pages {
        if rng.one_in(12) {
            index += 1 + rng.below(70);
        }
        let largest = index.trailing_zeros().min(if rng.one_in(40) { 9 } else { 4 });
        let order =
            if large { u32::try_from(rng.below(u64::from(largest) + 1)).unwrap_or(0) } else { 0 };
        // The page cache has no folios of two pages: their only tail would be too small for the
        // fields kept there.
        let order = if order == 1 { 0 } else { order };
        out.push((index, order));
        index += 1 << order;
        done += 1 << order;
    }
    out
}
