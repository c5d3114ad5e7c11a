//! Settings: a policy's parameters as a small TOML file.

use super::Class;
use crate::color::{KernelIdentity, Temperature, UnknownName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// Largest window in pages: 8 MiB.
const MAX_WINDOW: u32 = 2048;

/// Most slab caches that a policy file may name.
const MAX_CACHES: usize = 4096;

/// Longest policy file in bytes.
const MAX_TEXT: usize = 1 << 20;

/// How much to fetch around a fault in one class of frames: all frames of the aligned block of
/// `cold` pages, and the hot frames of the aligned block of `hot` pages, both in the region's
/// order. After every `grow` further faults in the same region both sizes double, up to `max`
/// pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Pages of the block for frames without a hint of use; at least 1.
    pub cold: u32,
    /// Pages of the block for frames with a hint of use; at least 1.
    pub hot: u32,
    /// Faults in a region after which its windows double; 0 for windows of fixed size.
    #[serde(default)]
    pub grow: u32,
    /// Most pages to which a window grows.
    #[serde(default)]
    pub max: u32,
}

impl Window {
    /// A window of fixed size for all frames.
    #[must_use]
    pub const fn fixed(pages: u32) -> Self {
        Self { cold: pages, hot: pages, grow: 0, max: 0 }
    }

    /// The window sizes in pages after `faults` earlier faults in the region: for cold and for hot
    /// frames, at least 1 each.
    #[must_use]
    pub fn after(&self, faults: u32) -> (u32, u32) {
        let doublings = faults.checked_div(self.grow).unwrap_or(0).min(MAX_WINDOW.ilog2());
        let grown = |pages: u32| {
            let doubled = u64::from(pages.max(1)) << doublings;
            pages.max(1).max(u32::try_from(doubled).unwrap_or(u32::MAX).min(self.max))
        };
        (grown(self.cold), grown(self.hot))
    }
}

/// Frames that are worth streaming before a fault: those of a class that show all of some hints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecencyHint {
    /// The class.
    pub class: Class,
    /// The hints; a frame must show all of them.
    pub signs: Temperature,
}

/// Parameters of a colored policy. The tuner produces them; [`Settings::shipped_for`] returns the
/// shipped ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The policy's name.
    pub name: String,
    /// The windows, by class.
    pub windows: [Window; Class::COUNT],
    /// Free frames to fill with zeros when one of them is first accessed: those that the guest's
    /// allocator hands out next or, if the map does not tell the order, the aligned block.
    pub zero_ahead: u32,
    /// Pages of each file to fetch when the frame that holds its inode faults; 0 for none.
    pub inode_pages: u32,
    /// Frames to stream first, in descending priority.
    pub predict: Vec<RecencyHint>,
    /// Slab caches to stream whole.
    pub predict_caches: Vec<String>,
}

/// The shipped settings, for Linux guests and for guests whose page tables alone are known.
const DEFAULT: &str = include_str!("default.toml");
const PAGE_TABLES: &str = include_str!("page_tables.toml");

impl Settings {
    /// The shipped settings for a guest: the [default](Self::default) ones, or those for guests
    /// whose page tables alone are known. In the latter, a frame of unknown
    /// use may be free, and most are.
    #[must_use]
    pub fn shipped_for(kernel: &KernelIdentity) -> Self {
        if kernel.os.is_empty() {
            // A test checks that the file parses.
            Self::parse(PAGE_TABLES).unwrap_or_else(|_| Self::bare("predicted"))
        } else {
            Self::default()
        }
    }
}

impl Default for Settings {
    /// The shipped settings for Linux guests: tuned on traces of Debian guests with Linux 5.10 to
    /// 7.2; see `docs/policies.md` for the method.
    fn default() -> Self {
        // A test checks that the file parses.
        Self::parse(DEFAULT).unwrap_or_else(|_| Self::bare("predicted"))
    }
}

/// Why a policy file cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The text is not TOML, or has unknown fields.
    #[error("not a policy file: {reason}")]
    Toml {
        /// What the parser says, with the line.
        reason: String,
    },
    /// The file names an unknown class.
    #[error(transparent)]
    Class(#[from] UnknownName),
    /// The file names an unknown hint.
    #[error("no sign of use is called `{name}`")]
    RecencyHint {
        /// The name.
        name: String,
    },
    /// A number is too large.
    #[error("{what} is {found}, more than {limit}")]
    Limit {
        /// What the number counts.
        what: String,
        /// The number.
        found: usize,
        /// The largest allowed.
        limit: usize,
    },
}

/// The TOML file as written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default)]
    zero_ahead: u32,
    #[serde(default)]
    inode_pages: u32,
    #[serde(default)]
    predict: Vec<FileHint>,
    #[serde(default)]
    predict_caches: Vec<String>,
    #[serde(default)]
    windows: BTreeMap<String, FileWindow>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHint {
    class: String,
    signs: Vec<String>,
}

/// A single number for a window of fixed size, or all fields.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum FileWindow {
    Fixed(u32),
    Full(Window),
}

impl Settings {
    /// A policy that fetches only faulting frames and fills free frames with zeros.
    #[must_use]
    pub fn bare(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            windows: [Window::fixed(1); Class::COUNT],
            zero_ahead: 1,
            inode_pages: 0,
            predict: Vec::new(),
            predict_caches: Vec::new(),
        }
    }

    /// These settings without prediction: only windows around faults are fetched, and nothing is
    /// streamed.
    #[must_use]
    pub fn without_prediction(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self.predict.clear();
        self.predict_caches.clear();
        self
    }

    /// The window of a class.
    #[must_use]
    pub fn window(&self, class: Class) -> Window {
        self.windows.get(class.index()).copied().unwrap_or(Window::fixed(1))
    }

    /// Parses a policy file (TOML; see `docs/policies.md`). Classes that the file does not name
    /// have windows of one page.
    ///
    /// # Errors
    /// [`SettingsError`] says what is wrong and, for a syntax error, where.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        within("length in bytes", text.len(), MAX_TEXT)?;
        let file: File =
            toml::from_str(text).map_err(|e| SettingsError::Toml { reason: e.to_string() })?;
        let mut settings = Self::bare(file.name);
        settings.zero_ahead = limited("zero-ahead", file.zero_ahead)?.max(1);
        settings.inode_pages = limited("inode-pages", file.inode_pages)?;
        for (name, window) in file.windows {
            let class: Class = name.parse()?;
            let window = match window {
                FileWindow::Fixed(pages) => Window::fixed(pages),
                FileWindow::Full(window) => window,
            };
            for pages in [window.cold, window.hot, window.max] {
                limited(&format!("window of {name}"), pages)?;
            }
            if let Some(slot) = settings.windows.get_mut(class.index()) {
                *slot = window;
            }
        }
        within("number of signs", file.predict.len(), MAX_CACHES)?;
        for hint in file.predict {
            settings.predict.push(hint.parse()?);
        }
        within("number of caches", file.predict_caches.len(), MAX_CACHES)?;
        settings.predict_caches = file.predict_caches;
        Ok(settings)
    }

    /// Serializes the settings as a file that [`Settings::parse`] accepts.
    #[must_use]
    pub fn to_text(&self) -> String {
        let windows = Class::all().map(|class| (class.name().to_owned(), self.window(class)));
        let windows = windows.filter(|(_, window)| *window != Window::fixed(1));
        let file = File {
            name: self.name.clone(),
            zero_ahead: self.zero_ahead,
            inode_pages: self.inode_pages,
            predict: self.predict.iter().map(FileHint::from).collect(),
            predict_caches: self.predict_caches.clone(),
            windows: windows.map(|(name, window)| (name, FileWindow::from(window))).collect(),
        };
        // Strings and numbers always serialize.
        toml::to_string(&file).unwrap_or_default()
    }
}

impl FileHint {
    fn parse(&self) -> Result<RecencyHint, SettingsError> {
        let mut signs = Temperature::NONE;
        for name in &self.signs {
            let known = Temperature::NAMES.iter().find(|(_, n)| n == name);
            let (hint, _) =
                known.ok_or_else(|| SettingsError::RecencyHint { name: name.clone() })?;
            signs.insert(*hint);
        }
        Ok(RecencyHint { class: self.class.parse()?, signs })
    }
}

impl From<&RecencyHint> for FileHint {
    fn from(hint: &RecencyHint) -> Self {
        let names = Temperature::NAMES.into_iter().filter(|(s, _)| hint.signs.contains(*s));
        Self {
            class: hint.class.name().to_owned(),
            signs: names.map(|(_, name)| name.to_owned()).collect(),
        }
    }
}

impl From<Window> for FileWindow {
    fn from(window: Window) -> Self {
        if window == Window::fixed(window.cold) {
            Self::Fixed(window.cold)
        } else {
            Self::Full(window)
        }
    }
}

fn limited(what: &str, pages: u32) -> Result<u32, SettingsError> {
    within(what, pages as usize, MAX_WINDOW as usize)?;
    Ok(pages)
}

fn within(what: &str, found: usize, limit: usize) -> Result<(), SettingsError> {
    if found > limit {
        return Err(SettingsError::Limit { what: what.to_owned(), found, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_settings_parse_and_do_something() {
        let settings = Settings::parse(DEFAULT).unwrap();
        assert_eq!(settings, Settings::default());
        let text: Class = "kernel-text".parse().unwrap();
        assert!(settings.window(text).hot > 1 && !settings.predict.is_empty());
        let region = settings.without_prediction("region");
        assert!(region.predict.is_empty() && region.predict_caches.is_empty());
        assert_eq!(region.name, "region");
    }

    #[test]
    fn unknown_systems_have_settings_of_their_own() {
        let linux = KernelIdentity { os: "linux".into(), ..KernelIdentity::default() };
        assert_eq!(Settings::shipped_for(&linux), Settings::default());
        let unknown = Settings::shipped_for(&KernelIdentity::default());
        assert_eq!(Settings::parse(PAGE_TABLES).as_ref(), Ok(&unknown));
        let nothing: Class = "unknown".parse().unwrap();
        assert!(
            unknown
                .predict
                .iter()
                .all(|hint| hint.class != nothing && hint.signs != Temperature::NONE)
        );
    }

    #[test]
    fn the_documented_example_parses() {
        let text = include_str!("../../../docs/policies.md");
        let example = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let settings = Settings::parse(example).unwrap();
        let code: Class = "file-code".parse().unwrap();
        assert_eq!(settings.window(code), Window { cold: 24, hot: 256, grow: 4, max: 128 });
        assert_eq!(settings.predict.len(), 1);
    }

    #[test]
    fn files_round_trip() {
        let settings = Settings::default();
        assert_eq!(Settings::parse(&settings.to_text()), Ok(settings));
        let bare = Settings::bare("bare");
        assert_eq!(Settings::parse(&bare.to_text()), Ok(bare));
    }

    #[test]
    fn windows_grow_to_their_limit_and_no_further() {
        let window = Window { cold: 4, hot: 16, grow: 2, max: 24 };
        let sizes: Vec<_> = (0..8).map(|faults| window.after(faults)).collect();
        assert_eq!(sizes[..4], [(4, 16), (4, 16), (8, 24), (8, 24)]);
        assert_eq!(sizes[7], (24, 24));
        assert_eq!(window.after(u32::MAX), (24, 24));
        assert_eq!(Window::fixed(3).after(1000), (3, 3));
        assert_eq!(Window { cold: 0, hot: 0, grow: 1, max: 0 }.after(9), (1, 1));
        let huge = Window { cold: u32::MAX, hot: u32::MAX, grow: 1, max: u32::MAX };
        assert_eq!(huge.after(u32::MAX), (u32::MAX, u32::MAX));
    }

    #[test]
    fn bad_files_say_what_is_wrong() {
        let error = |text: &str| Settings::parse(text).unwrap_err().to_string();
        assert!(error("name = 3").starts_with("not a policy file: TOML parse error at line 1"));
        assert!(error("name = \"a\"\nmagic = 1").contains("unknown field `magic`"));
        assert!(error("name = \"a\"\n[windows]\nmauve = 4").contains("called `mauve`"));
        let window = "name = \"a\"\n[windows]\nslab = 5000";
        assert_eq!(error(window), "window of slab is 5000, more than 2048");
        let hint = "name = \"a\"\n[[predict]]\nclass = \"slab\"\nsigns = [\"lukewarm\"]";
        assert_eq!(error(hint), "no sign of use is called `lukewarm`");
        assert!(error(&"#".repeat(MAX_TEXT + 1)).starts_with("length in bytes is"));
    }
}
