//! Which tables a list of patterns selects.

/// Whether the patterns select the table. A pattern is `namespace.table` with `*` for any run of
/// characters; one that begins with `!` excludes. A list of exclusions only selects all others.
#[must_use]
pub fn selects(patterns: &[String], namespace: &str, table: &str) -> bool {
    let all_exclude = patterns.iter().all(|pattern| pattern.starts_with('!'));
    last_word(patterns, &format!("{namespace}.{table}")).unwrap_or(all_exclude)
}

/// What the last pattern that matches says of a name: whether it selects it. `None`: none matches.
#[must_use]
pub fn last_word(patterns: &[String], name: &str) -> Option<bool> {
    let words = patterns.iter().rev();
    let mut words = words.map(|pattern| match pattern.strip_prefix('!') {
        Some(excluded) => (excluded, false),
        None => (pattern.as_str(), true),
    });
    words
        .find(|(pattern, _)| matches(pattern, name))
        .map(|(_, selected)| selected)
}

/// Whether the whole text matches a pattern with `*`.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_patterns_win_and_a_star_spans_anything() {
        let patterns: Vec<String> = ["public.*", "!public.audit_*", "public.audit_kept"]
            .map(String::from)
            .into();
        assert!(selects(&patterns, "public", "orders"));
        assert!(!selects(&patterns, "public", "audit_log"));
        assert!(selects(&patterns, "public", "audit_kept"));
        assert!(!selects(&patterns, "other", "orders"));
        assert!(!selects(&["public.orders".into()], "public", "orders2"));
        assert!(selects(&["*.o*r*s".into()], "public", "orders"));
        assert!(!selects(&["*.aba".into()], "x", "ab"));
        assert!(selects(&["!a.b".into()], "a", "c"));
    }
}
