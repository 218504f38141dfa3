//! Names with `*` for any characters.

/// A pattern for names of clients or exports: `*` stands for any number of any characters, all else for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// A pattern as it is written. Every text is one.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// True when all of `name` fits. Takes time in proportion to the product of both lengths at most.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty();
        };
        for part in parts {
            // The earliest place leaves most to what follows.
            let Some((_, behind)) = rest.split_once(part) else {
                return false;
            };
            rest = behind;
        }
        rest.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name) in [
            ("", ""),
            ("a", "a"),
            ("*", ""),
            ("*", "a/b"),
            ("a*", "a"),
            ("*a", "bca"),
            ("a*b*c", "a1b2c"),
            ("a**c", "ac"),
            ("*b*", "abc"),
            ("a*b", "abab"),
        ] {
            assert!(Pattern::new(pattern).matches(name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("", "a"),
            ("a", "ab"),
            ("a", "A"),
            ("a*a", "a"),
            ("a*b", "abc"),
            ("ab*ba", "aba"),
            ("*x*", "abc"),
            ("a*b*c", "acb"),
        ] {
            assert!(!Pattern::new(pattern).matches(name), "{pattern} {name}");
        }
    }
}
