//! QEMU's lists of options: `first,key=value,flag`, in which a value's commas are doubled.

use std::fmt;

/// A list of options. The first one may have no key (`-device virtio-blk-pci,drive=d0`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Options(Vec<(String, Option<String>)>);

impl Options {
    /// Takes a list apart.
    pub(crate) fn parse(text: &str) -> Self {
        let mut parts = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if character == ',' && characters.next_if_eq(&',').is_none() {
                parts.push(String::new());
            } else if let Some(part) = parts.last_mut() {
                part.push(character);
            }
        }
        let split = |part: String| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (part, None),
        };
        Self(parts.into_iter().map(split).collect())
    }

    /// The first word, if it has no key.
    pub(crate) fn first(&self) -> Option<&str> {
        self.0.first().filter(|(_, value)| value.is_none()).map(|(word, _)| word.as_str())
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == key).and_then(|(_, value)| value.as_deref())
    }

    /// Replaces the value of a key, or adds it.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        match self.0.iter_mut().find(|(found, _)| found == key) {
            Some((_, old)) => *old = Some(value.to_owned()),
            None => self.0.push((key.to_owned(), Some(value.to_owned()))),
        }
    }

    /// Removes all options with one of these keys.
    pub(crate) fn remove(&mut self, keys: &[&str]) {
        self.0.retain(|(key, _)| !keys.contains(&key.as_str()));
    }

    /// Every value of a key, to be changed.
    pub(crate) fn values_mut(&mut self, key: &str) -> impl Iterator<Item = &mut String> {
        self.0.iter_mut().filter(move |(found, _)| found == key).filter_map(|(_, v)| v.as_mut())
    }

    /// The keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (key, value)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{}", key.replace(',', ",,"))?;
            if let Some(value) = value {
                write!(f, "={}", value.replace(',', ",,"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_taken_apart_and_put_together() {
        let text = "user,id=n,hostfwd=tcp::1-:2,hostfwd=tcp::3-:4,path=a,,b,on";
        let mut options = Options::parse(text);
        assert_eq!(options.to_string(), text);
        assert_eq!((options.first(), options.get("path")), (Some("user"), Some("a,b")));
        for value in options.values_mut("hostfwd") {
            value.push('0');
        }
        options.set("id", "m");
        options.set("new", "x,y");
        options.remove(&["on"]);
        let expected = "user,id=m,hostfwd=tcp::1-:20,hostfwd=tcp::3-:40,path=a,,b,new=x,,y";
        assert_eq!(options.to_string(), expected);
        assert_eq!(Options::parse("id=a").first(), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_parsed_again(text in "[a-c,=]{0,12}") {
            let options = Options::parse(&text);
            prop_assert_eq!(Options::parse(&options.to_string()), options);
        }
    }
}
