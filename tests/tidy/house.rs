//! Every file of the workspace that the rules are about, read once.

use std::{collections::BTreeMap, fs, path::Path};

use crate::source::Source;

/// Everything in the workspace that the rules are about.
pub(crate) struct House {
    /// Rust sources.
    pub(crate) rust: Vec<Source>,
    /// Every Cargo.toml, by path.
    pub(crate) manifests: BTreeMap<String, String>,
    /// Every Markdown file, by path.
    pub(crate) documents: BTreeMap<String, String>,
    /// `deploy/lookaside.yaml`.
    pub(crate) yaml: String,
    /// Paths of all files.
    pub(crate) files: Vec<String>,
}

impl House {
    /// Reads the workspace this suite belongs to.
    pub(crate) fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = Vec::new();
        walk(&root, "", &mut files);
        let of = |end: &str| files.iter().filter(|file| file.ends_with(end)).cloned().collect::<Vec<_>>();
        let text = |path: &String| (path.clone(), fs::read_to_string(root.join(path)).unwrap());
        Self {
            rust: of(".rs").iter().map(|path| Source::read(&root, path)).collect(),
            manifests: of("Cargo.toml").iter().map(text).collect(),
            documents: of(".md").iter().map(text).collect(),
            yaml: fs::read_to_string(root.join("deploy/lookaside.yaml")).unwrap(),
            files,
        }
    }

    /// Sources whose path begins like this.
    pub(crate) fn within<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a Source> {
        self.rust.iter().filter(move |file| file.path.starts_with(folder))
    }

    /// One source.
    pub(crate) fn file(&self, path: &str) -> &Source {
        self.rust.iter().find(|file| file.path == path).unwrap_or_else(|| panic!("{path} is gone; so is a rule on it"))
    }
}

fn walk(root: &Path, folder: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let is_output = name == "target" || name.starts_with('.') || path == "tests/fuzz";
        if entry.file_type().unwrap().is_dir() {
            if !is_output {
                walk(root, &path, files);
            }
        } else {
            files.push(path);
        }
    }
    files.sort();
}
