//! Command lines that must be refused: one error that names the culprit, the way out where there is one, the right exit status, and
//! nothing written.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use super::{Workspace, stderr};

/// A command line that must be refused.
pub(crate) struct Case {
    /// Separated by spaces; the program runs in the workspace.
    pub(crate) arguments: &'static str,
    /// What the error line must name.
    pub(crate) culprit: &'static str,
    /// What the help line must say; `None` where there is nothing to do but what the error itself says.
    pub(crate) help: Option<&'static str>,
}

/// Status 1, with what the error line names and what the help line says.
pub(crate) const fn case(
    arguments: &'static str,
    culprit: &'static str,
    help: &'static str,
) -> Case {
    Case {
        arguments,
        culprit,
        help: if help.is_empty() { None } else { Some(help) },
    }
}

/// Runs every case, each of which must be refused with status 1.
#[track_caller]
pub(crate) fn check(workspace: &Workspace, cases: &[Case]) {
    for case in cases {
        let text = refused(workspace, case.arguments, 1, case.culprit);
        let help: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("help: "))
            .collect();
        assert!(help.len() <= 1, "{}:\n{text}", case.arguments);
        if let Some(expected) = case.help {
            let found = help.first().is_some_and(|line| line.contains(expected));
            assert!(
                found,
                "{}: no help with \"{expected}\" in\n{text}",
                case.arguments
            );
        }
    }
}

/// Runs the program, which must name `culprit` in its error and leave everything as it was. Returns what it said.
#[track_caller]
pub(crate) fn refused(
    workspace: &Workspace,
    arguments: &str,
    status: i32,
    culprit: &str,
) -> String {
    let text = unchanged(workspace, arguments, status);
    let error = text.lines().skip_while(|line| !line.starts_with("error: "));
    // Clap lists what is missing on lines of their own.
    let error: Vec<&str> = error
        .take_while(|line| !line.is_empty() && !line.starts_with("help: "))
        .collect();
    assert!(
        error.join("\n").contains(culprit),
        "{arguments}: no \"{culprit}\" in the error of\n{text}"
    );
    text
}

/// Runs the program, which must name all of `expected` in its error or the help and leave everything as it was.
#[track_caller]
pub(crate) fn refused_naming(
    workspace: &Workspace,
    arguments: &str,
    status: i32,
    expected: &[&str],
) {
    let text = unchanged(workspace, arguments, status);
    for expected in expected {
        assert!(
            text.contains(expected),
            "{arguments}: no {expected:?} in\n{text}"
        );
    }
}

/// Runs the program, which must fail properly and leave everything as it was. Returns what it said.
#[track_caller]
fn unchanged(workspace: &Workspace, arguments: &str, status: i32) -> String {
    let before = listing(&workspace.path(""));
    let output = workspace.output(arguments);
    let after = listing(&workspace.path(""));
    let text = error_text(&output, status);
    let changed: Vec<_> = after.symmetric_difference(&before).collect();
    assert!(
        changed.is_empty(),
        "{arguments}: something was written: {changed:?}"
    );
    text
}

/// Standard error of a program that must have failed properly.
#[track_caller]
pub(crate) fn error_text(output: &Output, status: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    let errors = text
        .lines()
        .filter(|line| line.starts_with("error: "))
        .count();
    assert_eq!(errors, 1, "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// Every path below `folder`, with the size of the files.
pub(crate) fn listing(folder: &Path) -> BTreeSet<(PathBuf, Option<u64>)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(listing(&path));
            found.insert((path, None));
        } else {
            let size = path.metadata().unwrap().len();
            found.insert((path, Some(size)));
        }
    }
    found
}

#[track_caller]
pub(crate) fn assert_nothing_partial(workspace: &Workspace, folder: &str) {
    let partial = |(path, _): &(PathBuf, _)| path.to_string_lossy().contains(".partial");
    let left = listing(&workspace.path(folder))
        .into_iter()
        .filter(partial)
        .count();
    assert_eq!(left, 0);
}
