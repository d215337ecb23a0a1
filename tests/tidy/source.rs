//! Rust sources as far as the rules need them: what is code and what is not, where tests begin, what is imported, what
//! is public. A lexer of a hundred lines; it understands this workspace, not every program.

use std::{fs, path::Path};

/// One file of the workspace.
pub(crate) struct Source {
    /// From the top of the workspace, with `/`.
    pub(crate) path: String,
    /// As it is.
    pub(crate) text: String,
    /// Line by line, with comments and the insides of strings blanked out.
    pub(crate) code: Vec<String>,
    /// Index of the first line of the test module at the foot; beyond the end when there is none.
    pub(crate) tests_at: usize,
}

impl Source {
    /// Reads a file; `path` is from the top of the workspace.
    pub(crate) fn read(root: &Path, path: &str) -> Self {
        let text = fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self::new(path, text)
    }

    /// From a text in hand.
    pub(crate) fn new(path: &str, text: String) -> Self {
        let code: Vec<String> = blank(&text).lines().map(str::to_owned).collect();
        let is_for_tests = |line: &str| line.starts_with("#[cfg(") && line.contains("test");
        let opens_module = |line: &str| line.starts_with("mod ") && line.ends_with('{');
        let opens_tests = |lines: &[String]| is_for_tests(&lines[0]) && opens_module(&lines[1]);
        let tests_at = code.windows(2).position(opens_tests).unwrap_or(code.len());
        Self { path: path.to_owned(), text, code, tests_at }
    }

    /// Whether nothing but tests is in it.
    pub(crate) fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// Lines of code that are not tests, with their numbers.
    pub(crate) fn product(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = if self.is_test() { 0 } else { self.tests_at };
        self.code[..end].iter().enumerate().map(|(at, line)| (at + 1, line.as_str()))
    }

    /// Lines of tests, with their numbers.
    pub(crate) fn tests(&self) -> impl Iterator<Item = (usize, &str)> {
        let start = if self.is_test() { 0 } else { self.tests_at };
        self.code[start..].iter().enumerate().map(move |(at, line)| (start + at + 1, line.as_str()))
    }

    /// The modules this file is within, from the top of its crate: `table`, `judge`. Empty for the root of a crate.
    pub(crate) fn module(&self) -> Vec<String> {
        let roots = [
            "src/core/",
            "src/tls/",
            "src/balancer/",
            "src/sim/",
            "src/load/",
            "src/cli/",
            "client-sdk/src/",
            "proto/",
        ];
        let inner = roots.iter().find_map(|root| self.path.strip_prefix(root)).unwrap_or(&self.path);
        let parts: Vec<String> = inner.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if ["lib", "main", "build"].contains(&parts[0].as_str()) { Vec::new() } else { parts }
    }

    /// Every path that the code outside tests names with `use`, or in full from `crate::` or `super::`, from the top of its
    /// crate where it is within it; with line numbers.
    pub(crate) fn paths(&self) -> Vec<(usize, String)> {
        let lines: Vec<&str> = self.product().map(|(_, line)| line).collect();
        let mut found = Vec::new();
        let mut at = 0;
        while at < lines.len() {
            let line = lines[at].trim_start();
            let tree =
                line.strip_prefix("pub ").or(line.strip_prefix("pub(crate) ")).or(line.strip_prefix("pub(super) "));
            if let Some(tree) = tree.unwrap_or(line).strip_prefix("use ") {
                let start = at;
                let mut tree = tree.to_owned();
                while !tree.contains(';') && at + 1 < lines.len() {
                    at += 1;
                    tree.push_str(lines[at]);
                }
                let tree: String = tree.split(';').next().unwrap_or("").split(" as ").collect::<Vec<_>>().join(" ");
                let mut leaves = Vec::new();
                expand("", &tree.replace('\n', " "), &mut leaves);
                found.extend(leaves.into_iter().map(|path| (start + 1, path)));
            } else {
                for word in line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
                    if word.starts_with("crate::") || word.starts_with("super::") {
                        found.push((at + 1, word.to_owned()));
                    }
                }
            }
            at += 1;
        }
        found.into_iter().map(|(line, path)| (line, self.resolve(&path))).collect()
    }

    /// `super::super::x` and `self::x` from the top of the crate.
    fn resolve(&self, path: &str) -> String {
        let mut module = self.module();
        let mut rest = path;
        let mut relative = false;
        while let Some(outer) = rest.strip_prefix("super::") {
            module.pop();
            (rest, relative) = (outer, true);
        }
        if let Some(inner) = rest.strip_prefix("self::") {
            (rest, relative) = (inner, true);
        }
        if !relative {
            return path.to_owned();
        }
        module.insert(0, "crate".to_owned());
        format!("{}::{rest}", module.join("::"))
    }

    /// Names of public items and fields outside tests, with their line numbers.
    pub(crate) fn public_names(&self) -> Vec<(usize, String)> {
        let kinds = ["fn", "struct", "enum", "trait", "type", "const", "static", "mod", "async", "unsafe"];
        let mut names = Vec::new();
        for (number, line) in self.product() {
            let line = line.trim_start();
            let Some(rest) = line.strip_prefix("pub ").or(line.strip_prefix("pub(crate) ")) else { continue };
            let name = rest
                .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .find(|word| !word.is_empty() && !kinds.contains(word));
            let is_use = rest.starts_with("use ");
            names.extend(name.filter(|_| !is_use).map(|name| (number, name.to_owned())));
        }
        names
    }
}

/// Words of a line of code.
pub(crate) fn words_of(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_'))
}

/// Splits `a::{b, c::{d, e}}` into full paths.
fn expand(prefix: &str, tree: &str, leaves: &mut Vec<String>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = format!("{prefix}{tree}");
        leaves.push(path.split(' ').next().unwrap_or("").to_owned());
        return;
    };
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let inner = tree[open + 1..].trim_end().trim_end_matches('}');
    let inner = if tree.ends_with('}') { &tree[open + 1..tree.len() - 1] } else { inner };
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&prefix, &inner[start..at], leaves);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        expand(&prefix, &inner[start..], leaves);
    }
}

/// The text with comments and the insides of strings and characters as spaces, lines kept.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    // Blanks out up to `end`, the quotes at either side kept.
    let cover = |out: &mut String, from: usize, end: usize| {
        out.extend(chars[from..end.min(chars.len())].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    };
    while at < chars.len() {
        let rest = &chars[at..];
        let begins = |word: &str| word.chars().eq(rest.iter().copied().take(word.len()));
        let within_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
        let hashes = rest.iter().skip(1).take_while(|c| **c == '#').count();
        if begins("//") {
            let end = rest.iter().position(|c| *c == '\n').map_or(chars.len(), |n| at + n);
            cover(&mut out, at, end);
            at = end;
        } else if begins("/*") {
            let end =
                (at + 2..chars.len()).find(|&n| chars[n - 1] == '*' && chars[n] == '/').map_or(chars.len(), |n| n + 1);
            cover(&mut out, at, end);
            at = end;
        } else if rest[0] == 'r' && !within_word && rest.get(1 + hashes) == Some(&'"') {
            let closes =
                |n: &usize| chars[*n] == '"' && chars[n + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
            let end = (at + 2 + hashes..chars.len()).find(closes).map_or(chars.len(), |n| n + 1 + hashes);
            out.push('"');
            cover(&mut out, at + 1, end.saturating_sub(1));
            out.push('"');
            at = end;
        } else if rest[0] == '"' {
            let mut end = at + 1;
            while end < chars.len() && chars[end] != '"' {
                end += if chars[end] == '\\' { 2 } else { 1 };
            }
            out.push('"');
            cover(&mut out, at + 1, end);
            out.push('"');
            at = end + 1;
        } else if rest[0] == '\'' && (rest.get(1) == Some(&'\\') || rest.get(2) == Some(&'\'')) {
            let end =
                (at + 2..chars.len()).find(|&n| chars[n] == '\'' && (n > at + 2 || rest[1] != '\\')).unwrap_or(at);
            out.push('\'');
            cover(&mut out, at + 1, end);
            out.push('\'');
            at = end + 1;
        } else {
            out.push(rest[0]);
            at += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::new(path, text.to_owned())
    }

    #[test]
    fn comments_and_strings_are_no_code() {
        let text = "a /* b\n c */ d // e\n\"f \\\" g\" h r#\"i \" j\"# k 'l' '\\'' '\\\\' &'static m\n";
        let kept: String = blank(text).chars().filter(|c| c.is_alphanumeric()).collect();
        assert_eq!(kept, "adhkstaticm");
        assert_eq!(blank(text).lines().count(), 3);
    }

    #[test]
    fn imports_are_found_whatever_their_form() {
        let text =
            "use std::{fmt, sync::{Arc, Mutex}};\nuse super::{a, super::policy::b};\nfn f() { crate::x::y(); }\n";
        let paths: Vec<String> = source("src/core/table/judge.rs", text).paths().into_iter().map(|(_, p)| p).collect();
        let expected =
            ["std::fmt", "std::sync::Arc", "std::sync::Mutex", "crate::table::a", "crate::policy::b", "crate::x::y"];
        assert_eq!(paths, expected);
    }

    #[test]
    fn tests_at_the_foot_are_told_from_the_product() {
        let file = source("src/core/x.rs", "pub fn one() {}\n#[cfg(test)]\nmod tests {\n    pub fn two() {}\n}\n");
        assert_eq!(file.product().count(), 1);
        assert_eq!(file.public_names(), [(1, "one".to_owned())]);
    }
}
