//! Keeps the house in order: imports go down only, files and functions stay small, every file says what it is for.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may fail loudly")]

use std::fs;
use std::path::{Path, PathBuf};

/// The floor of each room (ARCHITECTURE.md); rooms on one floor do not import each other.
const FLOORS: &[(&str, u32)] = &[
    ("ids", 0),
    ("reason", 0),
    ("condition", 0),
    ("deadline", 0),
    ("spiffe", 0),
    ("files", 1),
    ("life", 1),
    ("telemetry", 1),
    ("config", 2),
    ("plan", 3),
    ("resilience", 4),
    ("net", 5),
    ("tls", 5),
    ("dns", 5),
    ("http", 5),
    ("redirect", 5),
    ("jwt", 5),
    ("upstream", 6),
    ("call", 7),
    ("proxy", 8),
    ("control", 9),
    ("app", 10),
    ("cli", 10),
    ("main", 10),
    ("lib", 10),
];

const FILE_STOP: usize = 500;
const FUNCTION_STOP: usize = 60;

struct Source {
    path: PathBuf,
    room: String,
    /// Without the inline tests at the end; empty where the whole file is tests.
    lines: Vec<String>,
    /// Without the inline tests at the end; all of it where the whole file is tests.
    sized: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of Rust below a folder.
fn below(folder: PathBuf) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// The program's own files.
fn sources() -> Vec<Source> {
    let root = root().join("src");
    let source = |path: PathBuf| {
        let inside = path.strip_prefix(&root).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = room.trim_end_matches(".rs").to_owned();
        let tests_only = inside.to_str().unwrap().contains("test");
        let text = fs::read_to_string(&path).unwrap();
        let sized = if tests_only { text.lines().map(str::to_owned).collect() } else { without_tests(&text) };
        let lines = if tests_only { Vec::new() } else { sized.clone() };
        Source { path, room, lines, sized }
    };
    let found: Vec<Source> = below(root.clone()).into_iter().map(source).collect();
    assert!(found.len() > 40, "the sources were not found");
    found
}

/// The program's own files and those of its tests.
fn sources_and_tests() -> Vec<Source> {
    let test = |path: PathBuf| {
        let sized = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        Source { path, room: "tests".into(), lines: Vec::new(), sized }
    };
    let tests = below(root().join("tests")).into_iter().map(test);
    let mut all = sources();
    all.extend(tests);
    all
}

fn without_tests(text: &str) -> Vec<String> {
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let inline = |at: usize| {
        lines[at] == "#[cfg(test)]" && lines.get(at + 1).is_some_and(|l| l.starts_with("mod ") && l.ends_with('{'))
    };
    let end = (0..lines.len()).find(|at| inline(*at)).unwrap_or(lines.len());
    lines[..end].to_vec()
}

fn floor(room: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

/// Every `crate::room` that a line names outside comments.
fn named_rooms(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices("crate::")
        .map(|(at, word)| code[at + word.len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .collect()
}

#[test]
fn imports_go_down_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        let own = floor(&source.room).unwrap_or_else(|| panic!("{}: a room without a floor", source.path.display()));
        for (at, line) in source.lines.iter().enumerate() {
            for room in named_rooms(line) {
                let Some(other) = floor(&room) else { continue };
                if room != source.room && other >= own && own != 10 {
                    wrong.push(format!(
                        "{}:{}: {} (floor {own}) names {room} (floor {other})",
                        source.path.display(),
                        at + 1,
                        source.room
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn deciding_rooms_do_not_await_or_read_a_clock() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.room == "plan" || source.room == "resilience") {
        for (at, line) in source.lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains(".await") || code.contains("async fn") || code.contains("Instant::now") {
                wrong.push(format!("{}:{}: {}", source.path.display(), at + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_open_with_their_purpose_and_stay_small() {
    let mut wrong = Vec::new();
    for source in sources_and_tests() {
        let opening = fs::read_to_string(&source.path).unwrap();
        if !opening.starts_with("//! ") {
            wrong.push(format!("{}: does not open with a sentence of purpose", source.path.display()));
        }
        if source.sized.len() > FILE_STOP {
            wrong.push(format!("{}: {} lines", source.path.display(), source.sized.len()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn functions_stay_small() {
    let mut wrong = Vec::new();
    for source in sources_and_tests() {
        for (at, line) in source.sized.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let starts = [
                "fn ",
                "pub fn ",
                "async fn ",
                "pub async fn ",
                "pub(crate) fn ",
                "pub(super) fn ",
                "const fn ",
                "pub const fn ",
            ];
            if !starts.iter().any(|start| line.trim_start().starts_with(start)) || line.trim_end().ends_with([';', '}'])
            {
                continue;
            }
            let close = format!("{}}}", " ".repeat(indent));
            let Some(length) = source.sized[at..].iter().position(|l| *l == close) else { continue };
            if length + 1 > FUNCTION_STOP {
                wrong.push(format!("{}:{}: {} lines: {}", source.path.display(), at + 1, length + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_one_file_spawns() {
    for source in sources() {
        if source.path.ends_with("life/tasks.rs") {
            continue;
        }
        for (at, line) in source.lines.iter().enumerate() {
            assert!(!line.contains("tokio::spawn("), "{}:{}", source.path.display(), at + 1);
        }
    }
}
