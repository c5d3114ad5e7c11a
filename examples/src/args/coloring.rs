//! How an image is colored.

use kaleidoscope_core::coloring::Rules;

/// What may be used to color an image.
#[derive(Clone, Copy, Default, Debug, clap::Args)]
pub(crate) struct ColoringArgs {
    /// Color by page tables alone, as for a guest whose kernel is not known: the tables of all
    /// vCPUs and, if the guest runs Linux, of all its processes
    #[arg(long)]
    pub(crate) page_tables: bool,
}

/// Which color wins where several fit.
#[derive(Clone, Copy, Default, Debug, clap::Args)]
pub(crate) struct RuleArgs {
    /// Color file pages that processes map as page cache, not as the processes' code or data
    #[arg(long)]
    cache_wins: bool,
}

impl RuleArgs {
    /// The rules.
    pub(crate) fn rules(self) -> Rules {
        if self.cache_wins { Rules::page_cache_wins() } else { Rules::default() }
    }
}
