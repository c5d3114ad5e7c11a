//! The guest's root file system: a few Debian packages on ext4.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        reason = "a tree in the cache is made again if it is not whole"
    )
)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::interrupt::{Scratch, Undo, arm_with};

use crate::lab::build::packages;
use crate::lab::command::{DEBUGFS, MKFS_EXT4};
use crate::lab::error::{Error, Result};

/// The guest's packages, without dependencies.
const PACKAGES: &[&str] =
    &["bash", "busybox-static", "coreutils", "libpython3-stdlib", "perl-base", "python3-minimal"];

/// The staged tree's name in the cache. Raise the number when the staging changes.
const STAGING: &str = "root-2";

/// The agent's path in the guest.
pub(crate) const AGENT: &str = "/usr/bin/kaleidoscope";

/// The guest's process 1.
const INIT: &str = "#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mkdir -p /dev/shm
$b mount -t tmpfs tmpfs /dev/shm
$b mount -t tmpfs tmpfs /tmp
$b mount -t tmpfs tmpfs /run
# Ends the guest if the host does not.
{ sleep 3600; $b poweroff -f; } &
/usr/bin/kaleidoscope lab-agent || echo lab: the agent failed
$b poweroff -f
";

/// A staged tree and an ext4 image of it, both in the cache.
#[derive(Clone, Debug)]
pub(crate) struct RootFs {
    /// The unpacked packages.
    pub(crate) tree: PathBuf,
    /// An ext4 image of the tree, without the agent.
    image: PathBuf,
}

impl RootFs {
    /// The cached root file system, made first if it does not exist.
    ///
    /// # Errors
    /// If packages cannot be fetched or the image cannot be made.
    pub(crate) fn prepare(cache: &Path) -> Result<Self> {
        let root = Self {
            tree: cache.join(STAGING).join("tree"),
            image: cache.join(STAGING).join("root.ext4"),
        };
        if root.image.is_file() {
            return Ok(root);
        }
        if root.tree.exists() {
            std::fs::remove_dir_all(&root.tree).map_err(Error::io("remove", &root.tree))?;
        }
        root.stage(cache)?;
        root.make_image()?;
        Ok(root)
    }

    /// The statically linked busybox for the initramfs.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.tree.join("usr/bin/busybox")
    }

    /// Copies the image to `disk`, and adds the agent, as an executable, and other `files`. Each
    /// file is given with its absolute path in the guest.
    ///
    /// # Errors
    /// If the copy fails or the image has no room.
    pub(crate) fn disk_with_agent(
        &self,
        disk: &Path,
        agent: &Path,
        files: &[(&Path, &str)],
    ) -> Result<()> {
        crate::lab::sparse::copy(&self.image, disk)?;
        let scratch = Scratch::new("kaleidoscope-lab-").map_err(Error::io("create", disk))?;
        let commands = scratch.path().join("commands");
        let mut script = String::new();
        for (file, name) in files.iter().copied().chain([(agent, AGENT)]) {
            let name = name.trim_start_matches('/');
            script.push_str(&format!("write {} {name}\n", file.display()));
        }
        let name = AGENT.trim_start_matches('/');
        script.push_str(&format!("set_inode_field {name} mode 0100755\n"));
        std::fs::write(&commands, script).map_err(Error::io("write", &commands))?;
        let output = DEBUGFS.run(DEBUGFS.command().args(["-w", "-f"]).arg(&commands).arg(disk))?;
        // debugfs reports failures of its commands only on standard error, not by its status.
        let stderr = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<_> = stderr.lines().filter(|line| !line.starts_with("debugfs ")).collect();
        if errors.is_empty() {
            return Ok(());
        }
        Err(Error::Agent(format!("cannot copy its files into the image: {}", errors.join("; "))))
    }

    fn stage(&self, cache: &Path) -> Result<()> {
        let create = |name: &str| {
            let path = self.tree.join(name);
            std::fs::create_dir_all(&path).map_err(Error::io("create", &path))
        };
        // A merged /usr, as on any current release.
        for (link, target) in
            [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
        {
            create(target)?;
            let path = self.tree.join(link);
            symlink(target, &path).map_err(Error::io("link", &path))?;
        }
        let closure = packages::closure(PACKAGES)?;
        for archive in packages::download(&cache.join("debs"), &closure)? {
            packages::unpack(&archive, &self.tree)?;
        }
        for name in ["proc", "sys", "dev", "tmp", "run", "mnt", "root", "etc"] {
            create(name)?;
        }
        let init = self.tree.join("usr/sbin/init");
        std::fs::write(&init, INIT).map_err(Error::io("write", &init))?;
        set_executable(&init)?;
        let accounts = self.tree.join("etc/passwd");
        std::fs::write(&accounts, "root:x:0:0:root:/root:/bin/bash\n")
            .map_err(Error::io("write", &accounts))
    }

    fn make_image(&self) -> Result<()> {
        // Includes space for the agent and for the workload's databases and copies.
        const SIZE: &str = "400M";
        let partial = self.image.with_extension("partial");
        if partial.exists() {
            std::fs::remove_file(&partial).map_err(Error::io("remove", &partial))?;
        }
        let ((), armed) = arm_with(Undo::Remove(partial.clone()), || Ok::<_, Error>(()))?;
        MKFS_EXT4.run(
            MKFS_EXT4
                .command()
                .args(["-q", "-F", "-E", "root_owner=0:0", "-d"])
                .arg(&self.tree)
                .arg(&partial)
                .arg(SIZE),
        )?;
        armed
            .disarm_with(|| std::fs::rename(&partial, &self.image))
            .map_err(Error::io("rename", &partial))
    }
}

fn set_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let rights = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, rights).map_err(Error::io("change the rights of", path))
}
