//! A part of a page of the documentation that a chore writes: what stands between two markers.

use anyhow::{Context as _, Result, bail, ensure};

pub(crate) struct Page {
    /// From the checkout's root.
    path: &'static str,
    /// What the markers are called after.
    part: &'static str,
}

impl Page {
    /// The part of a page that is called `results`.
    pub(crate) const fn results(path: &'static str) -> Self {
        Self::part(path, "results")
    }

    pub(crate) const fn part(path: &'static str, part: &'static str) -> Self {
        Self { path, part }
    }

    /// Before minutes of work: whether there is a place for the result.
    pub(crate) fn check(&self) -> Result<()> {
        let text = self.read()?;
        self.between(&text).map(|_| ())
    }

    pub(crate) fn update(&self, markdown: &str) -> Result<()> {
        let text = self.read()?;
        let (head, tail) = self.between(&text)?;
        std::fs::write(self.path, format!("{head}\n{markdown}{tail}"))
            .with_context(|| format!("write {}", self.path))
    }

    fn read(&self) -> Result<String> {
        std::fs::read_to_string(self.path)
            .with_context(|| format!("read {}: run this in the checkout's root", self.path))
    }

    /// What is before and behind the place of the results, with the markers.
    fn between<'a>(&self, text: &'a str) -> Result<(&'a str, &'a str)> {
        let (opens, closes) = (
            format!("<!-- {} -->", self.part),
            format!("<!-- /{} -->", self.part),
        );
        let begin = text.find(&opens).map(|at| at + opens.len());
        let end = text.find(&closes);
        let (Some(begin), Some(end)) = (begin, end) else {
            bail!("{} lacks the lines {opens} and {closes}", self.path);
        };
        ensure!(begin <= end, "{} has {closes} before {opens}", self.path);
        Ok((&text[..begin], &text[end..]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let page = Page::part("page.md", "new");
        let text = "<!-- results -->\nnot this\n<!-- /results -->\n<!-- new -->\nold\n<!-- /new -->\nafter\n";
        let (head, tail) = page.between(text).unwrap();
        assert_eq!(
            head,
            "<!-- results -->\nnot this\n<!-- /results -->\n<!-- new -->"
        );
        assert_eq!(tail, "<!-- /new -->\nafter\n");
        assert!(page.between("nothing").is_err());
    }
}
