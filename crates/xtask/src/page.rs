//! A page of the documentation one part of which a chore writes: what stands between two markers.

use anyhow::{Context as _, Result, bail, ensure};

const BEGIN: &str = "<!-- results -->";
const END: &str = "<!-- /results -->";

/// Its path, from the checkout's root.
pub(crate) struct Page(pub(crate) &'static str);

impl Page {
    /// Before minutes of work: whether there is a place for the result.
    pub(crate) fn check(&self) -> Result<()> {
        let text = self.read()?;
        self.between(&text).map(|_| ())
    }

    pub(crate) fn update(&self, markdown: &str) -> Result<()> {
        let text = self.read()?;
        let (head, tail) = self.between(&text)?;
        std::fs::write(self.0, format!("{head}\n{markdown}{tail}"))
            .with_context(|| format!("write {}", self.0))
    }

    fn read(&self) -> Result<String> {
        std::fs::read_to_string(self.0)
            .with_context(|| format!("read {}: run this in the checkout's root", self.0))
    }

    /// What is before and behind the place of the results, with the markers.
    fn between<'a>(&self, text: &'a str) -> Result<(&'a str, &'a str)> {
        let begin = text.find(BEGIN).map(|at| at + BEGIN.len());
        let end = text.find(END);
        let (Some(begin), Some(end)) = (begin, end) else {
            bail!("{} lacks the lines {BEGIN} and {END}", self.0);
        };
        ensure!(begin <= end, "{} has {END} before {BEGIN}", self.0);
        Ok((&text[..begin], &text[end..]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let page = Page("page.md");
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let (head, tail) = page.between(&text).unwrap();
        assert_eq!(head, format!("before\n{BEGIN}"));
        assert_eq!(tail, format!("{END}\nafter\n"));
        assert!(page.between("nothing").is_err());
    }
}
