//! What a lab guest exercises beyond the plain workload.

use std::collections::BTreeSet;
use std::str::FromStr;

use clap::ValueEnum;

/// A kernel feature that makes the guest's memory harder to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Feature {
    /// A pool of 2 MiB pages, part of it mapped and part of that touched.
    Hugetlb,
    /// Transparent huge pages, whole and split.
    Thp,
    /// Anonymous and shared pages on a swap disk, some of them back in the swap cache.
    Swap,
    /// Equal pages of two processes merged.
    Ksm,
    /// An overlay mount with files read through it and copied up.
    Overlay,
    /// A squashfs disk.
    Squashfs,
    /// An xfs disk (large folios on newer kernels).
    Xfs,
    /// Memory given back to the host by virtio-balloon.
    Balloon,
    /// memfd, System V shared memory, shared anonymous memory.
    Memfd,
}

impl Feature {
    /// The name on the command line and on the guest's kernel command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hugetlb => "hugetlb",
            Self::Thp => "thp",
            Self::Swap => "swap",
            Self::Ksm => "ksm",
            Self::Overlay => "overlay",
            Self::Squashfs => "squashfs",
            Self::Xfs => "xfs",
            Self::Balloon => "balloon",
            Self::Memfd => "memfd",
        }
    }

    /// The kernel modules it needs, without their dependencies.
    pub(crate) fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Overlay => &["overlay"],
            Self::Squashfs => &["squashfs"],
            Self::Xfs => &["xfs"],
            Self::Balloon => &["virtio_balloon"],
            Self::Hugetlb | Self::Thp | Self::Swap | Self::Ksm | Self::Memfd => &[],
        }
    }
}

/// A value of `--feature`: one feature, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Every feature.
    All,
    /// One feature.
    One(Feature),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == "all" {
            return Ok(Self::All);
        }
        <Feature as ValueEnum>::from_str(name, false).map(Self::One).map_err(|_| {
            let known: Vec<_> = Feature::value_variants().iter().map(|f| f.name()).collect();
            format!("expected one of {}, all", known.join(", "))
        })
    }
}

/// The features of one guest, in a fixed order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features(BTreeSet<Feature>);

impl Features {
    /// The union of `choices`.
    pub(crate) fn from_choices(choices: &[Choice]) -> Self {
        let mut set = BTreeSet::new();
        for choice in choices {
            match choice {
                Choice::All => set.extend(Feature::value_variants()),
                Choice::One(feature) => {
                    set.insert(*feature);
                }
            }
        }
        Self(set)
    }

    /// Whether `feature` is wanted.
    pub(crate) fn has(&self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }

    /// The features in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Feature> + '_ {
        self.0.iter().copied()
    }

    /// Comma-separated names, as the guest's kernel command line carries them.
    pub(crate) fn to_list(&self) -> String {
        self.iter().map(Feature::name).collect::<Vec<_>>().join(",")
    }

    /// The inverse of [`Features::to_list`]; names that are not features are ignored (the guest
    /// reads them from its kernel command line, where others may write too).
    pub(crate) fn from_list(list: &str) -> Self {
        let known = list.split(',').filter_map(|name| Choice::from_str(name).ok());
        Self::from_choices(&known.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_survives_the_kernel_command_line() {
        let all = Features::from_choices(&[Choice::All]);
        assert_eq!(all.iter().count(), Feature::value_variants().len());
        assert_eq!(Features::from_list(&all.to_list()), all);
        assert_eq!(Features::from_list("").to_list(), "");
        assert_eq!(Features::from_list("swap,nonsense,thp").to_list(), "thp,swap");
    }

    #[test]
    fn an_unknown_feature_names_the_known_ones() {
        let message = Choice::from_str("zswap").unwrap_err();
        assert!(message.contains("hugetlb") && message.contains("all"), "{message}");
    }
}
