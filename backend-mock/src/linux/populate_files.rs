//! The files of a guest: which file systems are mounted where, and what of their files is cached.

use super::builder::Knobs;
use super::image::Section;
use super::kernel::Kernel;
use super::vfs::{File, Vfs, encode_device};
use crate::{MockError, Rng};
use kaleidoscope_core::addr::Gva;

impl Kernel {
    /// File systems, directories, files with their page cache, memory files, block devices.
    pub(super) fn populate_files(
        &mut self,
        knobs: &Knobs,
        budget: u64,
    ) -> Result<(Vfs, Vec<File>), MockError> {
        let list = self.image.place(Section::Data, "super_blocks", 16, 8)?;
        self.list_init(list.0)?;
        let mut vfs = Vfs::default();
        let rootfs = self.new_file_system(&mut vfs, "rootfs", encode_device(0, 2), "rootfs")?;
        let base = self.mount_on(&mut vfs, rootfs, None)?;
        let ext4 = self.new_file_system(&mut vfs, "ext4", encode_device(254, 1), "vda1")?;
        let root = self.mount_on(&mut vfs, ext4, Some(base))?;
        let mut dirs = Vec::new();
        let usr = self.new_directory(&mut vfs, root, "usr")?;
        let bin = self.new_directory(&mut vfs, usr, "bin")?;
        let lib = self.new_directory(&mut vfs, usr, "lib")?;
        for (parent, name) in
            [(root, "etc"), (lib, "x86_64-linux-gnu"), (root, "var"), (root, "home")]
        {
            dirs.push(self.new_directory(&mut vfs, parent, name)?);
        }
        let deep = dirs.last().copied().unwrap_or(root);
        dirs.push(self.new_directory(
            &mut vfs,
            deep,
            "a directory whose name needs more room than an entry has",
        )?);
        let dev_dir = self.new_directory(&mut vfs, root, "dev")?;
        let run_dir = self.new_directory(&mut vfs, root, "run")?;
        let srv_dir = self.new_directory(&mut vfs, root, "srv")?;
        let devtmpfs =
            self.new_file_system(&mut vfs, "devtmpfs", encode_device(0, 6), "devtmpfs")?;
        let dev = self.mount_on(&mut vfs, devtmpfs, Some(dev_dir))?;
        let shm_dir = self.new_directory(&mut vfs, dev, "shm")?;
        let run_fs = self.new_file_system(&mut vfs, "tmpfs", encode_device(0, 23), "tmpfs")?;
        let run = self.mount_on(&mut vfs, run_fs, Some(run_dir))?;
        let shm_fs = self.new_file_system(&mut vfs, "tmpfs", encode_device(0, 24), "tmpfs")?;
        let shm = self.mount_on(&mut vfs, shm_fs, Some(shm_dir))?;
        let xfs = self.new_file_system(&mut vfs, "xfs", encode_device(254, 16), "vdb")?;
        let srv = self.mount_on(&mut vfs, xfs, Some(srv_dir))?;
        // The same file system once more, at a directory of its own: a bind mount, seen before the first.
        let xfs_root =
            vfs.systems.get(xfs).map(|s| s.root).ok_or(MockError::Knobs("no such file system"))?;
        dirs.push(srv);
        let inner = self.new_directory(&mut vfs, srv, "data")?;
        dirs.push(inner);
        let inner_dentry = vfs.directories.get(inner).map_or(xfs_root, |d| d.dentry);
        let home = vfs.directories.get(deep).map_or(xfs_root, |d| d.dentry);
        self.new_mount(&vfs, xfs, inner_dentry, Some((ext4, home)))?;
        let internal = self.new_file_system(&mut vfs, "tmpfs", encode_device(0, 1), "tmpfs")?;
        let bdev = self.new_file_system(&mut vfs, "bdev", encode_device(0, 3), "bdev")?;
        for kernel_only in [internal, bdev] {
            let root = vfs.systems.get(kernel_only).map_or(xfs_root, |s| s.root);
            self.new_mount(&vfs, kernel_only, root, None)?;
        }

        let mut files = Vec::new();
        for (directory, name) in [
            (bin, "python3.11"),
            (bin, "sqlite3"),
            (bin, "nginx"),
            (lib, "libc.so.6"),
            (lib, "libcrypto.so.3"),
        ] {
            let (mut file, _) = self.new_file(&mut vfs, directory, name)?;
            file.is_program = true;
            let pages = (budget / 250).clamp(8, 400) + self.rng.below(16);
            let folios: Vec<_> = (0..pages).filter(|i| i % 13 != 7).map(|i| (i, 0)).collect();
            self.cache_file(&mut files, file, &folios)?;
        }
        let wanted =
            u64::from(knobs.files.unwrap_or(u32::try_from(30 + budget / 300).unwrap_or(u32::MAX)));
        let average = (budget * 28 / 100 / wanted.max(1)).max(1);
        for number in 0..wanted {
            let directory = dirs.get(self.rng.index(dirs.len())).copied().unwrap_or(root);
            let long =
                if self.rng.one_in(6) { "-with-a-name-that-is-longer-than-most" } else { "" };
            let (file, dentry) =
                self.new_file(&mut vfs, directory, &format!("file{number}{long}.dat"))?;
            let mut file = file;
            if self.rng.one_in(20) {
                let inode = self.load(self.address(file.mapping, "host")?)?;
                let inode = self.object(Gva(inode), "inode")?;
                self.unlink(dentry, inode)?;
                file.path = None;
            }
            let large = file.fs == xfs && knobs.style.large_folios();
            let folios = plan(&mut self.rng, average, large);
            self.cache_file(&mut files, file, &folios)?;
        }
        if knobs.stale_note {
            let (file, _) = self.new_file(&mut vfs, root, "vmcoreinfo.txt")?;
            self.cache_file(&mut files, file, &[(0, 0)])?;
            let stale = "OSRELEASE=5.4.0-stale\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82409000\nNUMBER(phys_base)=0\n";
            let head =
                files.last().and_then(|f: &File| f.folios.get(&0)).map(|f| f.0).unwrap_or_default();
            self.memory.write(head.gpa(), stale.as_bytes())?;
        }
        // A file with pages far from its beginning.
        let (file, _) = self.new_file(&mut vfs, root, "sparse.img")?;
        self.cache_file(&mut files, file, &[(3, 0), (4000, 0), (300_000, 0), (1 << 26, 0)])?;
        for (directory, name) in [(run, "journal"), (shm, "sem.pool"), (shm, "ring")] {
            let (file, _) = self.new_file(&mut vfs, directory, name)?;
            let pages = budget * 8 / 1000 + 1;
            let folios: Vec<_> = (0..pages).map(|i| (i * 5 / 4, 0)).collect();
            self.cache_file(&mut files, file, &folios)?;
        }
        for name in ["memfd:jit", "SYSV0001c0de"] {
            let file = self.new_nameless(&mut vfs, internal, name)?;
            let folios: Vec<_> = (0..budget * 4 / 1000 + 1).map(|i| (i, 0)).collect();
            self.cache_file(&mut files, file, &folios)?;
        }
        for (name, device) in [("vda", encode_device(254, 0)), ("vda1", encode_device(254, 1))] {
            let file = self.new_block_device(&mut vfs, bdev, dev, name, device)?;
            let folios: Vec<_> = (0..budget * 15 / 1000 + 1).map(|i| (i * i / 3 + i, 0)).collect();
            self.cache_file(&mut files, file, &folios)?;
        }
        Ok((vfs, files))
    }

    /// Fills and indexes a file's cache and adds the file to the others.
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

/// Which pages of a file are cached: about `average`, with holes; folios of several pages when `large`.
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
        // A folio of two pages does not exist in the page cache: its first tail has no room for what it needs.
        let order = if order == 1 { 0 } else { order };
        out.push((index, order));
        index += 1 << order;
        done += 1 << order;
    }
    out
}
