//! What documents refer to exists: files, headings, and the tests that docs/security.md counts on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The workspace's.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files of the workspace with this ending, without what is built.
fn files(ending: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && !name.to_string_lossy().starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
    }
    found
}

/// A page without its blocks of commands.
fn prose(page: &str) -> String {
    let mut in_block = false;
    let lines = page.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        !is_fence && !in_block
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The targets of a page's links.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// What is between single backticks.
fn quoted(page: &str) -> impl Iterator<Item = &str> {
    page.split('`').skip(1).step_by(2)
}

/// By what links name a heading: in lower case, without punctuation, with hyphens for spaces.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
    let anchor = |heading: &str| {
        let kept = heading
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .collect::<String>();
        kept.trim().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let (mut broken, mut followed) = (Vec::new(), 0);
    // Beside code lie pieces of pages.
    for file in files("md").into_iter().filter(|file| !file.iter().any(|part| part == "src")) {
        let page = prose(&fs::read_to_string(&file).unwrap());
        for link in links(&page).filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            let has_heading = || {
                let page = fs::read_to_string(&target).map(|page| prose(&page));
                page.is_ok_and(|page| anchors(&page).contains(anchor))
            };
            followed += 1;
            if !target.exists() || !(anchor.is_empty() || has_heading()) {
                broken.push(format!("{}: {link}", file.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(followed > 100, "{followed} links were seen");
}

#[test]
fn the_files_and_tests_that_hold_threats_off_are_there() {
    let page = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let code: Vec<_> = files("rs").into_iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let is_test = |word: &str| {
        word.split('_').count() > 2 && word.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
    };
    let (mut missing, mut tests) = (Vec::new(), 0);
    for word in quoted(&page) {
        let is_there = if word.starts_with("cyphonic-") {
            root().join(word).exists()
        } else if is_test(word) {
            tests += 1;
            code.iter().any(|file| file.contains(&format!("fn {word}(")))
        } else {
            true
        };
        if !is_there {
            missing.push(word);
        }
    }
    assert!(missing.is_empty(), "docs/security.md names {missing:?}");
    assert!(tests > 30, "{tests} tests were looked for");
}
