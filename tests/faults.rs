//! Runs on machines that fail: killed between writing and renaming, with a full disk, a clock that goes back, data that are gone.
#![cfg(target_os = "linux")]

mod support;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command},
    sync::OnceLock,
};

use support::{
    Workspace,
    runs::{assert_no_leftovers, assert_same, result, train, train_with},
};

const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

#[test]
fn killed_between_writing_and_renaming_nothing_is_lost() {
    let workspace = Workspace::new();
    workspace.run("train all tiny.toml --data data --out reference");
    let expected = result(&workspace, "reference");
    // Each session is killed at its k-th rename, whatever that is of. A checkpoint takes eight, so that some sessions get further.
    for first in [0, 1, 2] {
        let run = format!("run-{first}");
        let mut kills = 0;
        for session in 0.. {
            let at = 1 + (first + 7 * session) % 24;
            let child = train_with(
                &workspace,
                &run,
                "",
                &[preloaded(), ("FAULT_KILL_AT_RENAME", at.to_string())],
            );
            let output = child.wait_with_output().unwrap();
            if output.status.code().is_some() {
                support::succeeded(output);
                break;
            }
            kills += 1;
            assert!(kills < 200, "it never ends");
        }
        assert!(kills >= 5, "only {kills} kills");
        assert_same(&result(&workspace, &run), &expected);
        assert_no_leftovers(&workspace, &run);
    }
}

#[test]
fn a_disk_that_is_full_or_read_only_for_a_while_stops_nothing() {
    let workspace = Workspace::new();
    let steps = "--steps 24";
    workspace.run(&format!(
        "train all tiny.toml --data data --out reference {steps}"
    ));
    let expected = result(&workspace, "reference");
    for (errno, words) in [(ENOSPC, "No space left"), (EROFS, "Read-only")] {
        for stage in ["stage1", "stage2"] {
            let run = format!("run-{errno}-{stage}");
            let flag = workspace.path(&format!("full-{run}"));
            let mut child = train_with(
                &workspace,
                &run,
                steps,
                &[
                    preloaded(),
                    ("FAULT_WHILE", flag.display().to_string()),
                    ("FAULT_ERRNO", errno.to_string()),
                ],
            );
            await_steps(&workspace, &mut child, &format!("{run}/{stage}"), 3);
            fs::write(&flag, "").unwrap();
            // The stage ends while nothing can be written, and waits.
            let said = said_until(&mut child, "can't be written");
            assert!(
                said.contains(words) && said.contains("no checkpoint"),
                "{said}"
            );
            fs::remove_file(&flag).unwrap();
            support::succeeded(child.wait_with_output().unwrap());

            let mut found = result(&workspace, &run);
            // What couldn't be logged is not in the log, and sheets of that time are missing.
            let mut expected = expected.clone();
            let unlogged = format!("{stage}/metrics.jsonl");
            assert!(
                found.remove(&unlogged).unwrap().len() < expected.remove(&unlogged).unwrap().len()
            );
            expected.retain(|name, _| found.contains_key(name) || !name.contains(stage));
            assert_same(&found, &expected);
            assert_no_leftovers(&workspace, &run);
        }
    }
}

#[test]
fn a_disk_that_stays_full_ends_the_run_with_the_way_out_and_resuming_finishes_it() {
    let workspace = Workspace::new();
    let options =
        "--steps 24 --set stage1.training.write_patience=1 --set stage2.training.write_patience=1";
    workspace.run("train all tiny.toml --data data --out reference --steps 24");
    let flag = workspace.path("full");
    let mut child = train_with(
        &workspace,
        "run",
        options,
        &[
            preloaded(),
            ("FAULT_WHILE", flag.display().to_string()),
            ("FAULT_ERRNO", ENOSPC.to_string()),
        ],
    );
    await_steps(&workspace, &mut child, "run/stage1", 5);
    fs::write(&flag, "").unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = support::stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("No space left") && stderr.contains("help: free some space"),
        "{stderr}"
    );
    support::succeeded(
        train(&workspace, "run", options)
            .wait_with_output()
            .unwrap(),
    );
    assert_same(&result(&workspace, "run"), &result(&workspace, "reference"));
}

#[test]
fn a_clock_that_goes_back_changes_nothing() {
    let workspace = Workspace::new();
    workspace.run("train all tiny.toml --data data --out reference");
    let back = [preloaded(), ("FAULT_CLOCK_BACK", "1".into())];
    // More steps of stage 1 make other latents.
    let rebuild = "--set data.latent_cache=rebuild";
    let output = train_with(&workspace, "run", "--steps 4", &back)
        .wait_with_output()
        .unwrap();
    support::succeeded(output);
    let output = train_with(&workspace, "run", rebuild, &back)
        .wait_with_output()
        .unwrap();
    support::succeeded(output);
    let found = workspace.files("run");
    for stage in ["stage1", "stage2"] {
        let events = found
            .keys()
            .filter(|name| name.contains(&format!("{stage}/events")));
        assert_eq!(events.count(), 2, "each session has a file of events");
    }

    // A schedule depends on the number of steps: the reference takes the same road.
    workspace.run("train all tiny.toml --data data --out straight --steps 4");
    workspace.run(&format!(
        "train all tiny.toml --data data --out straight --resume {rebuild}"
    ));
    assert_same(&result(&workspace, "run"), &result(&workspace, "straight"));
}

#[test]
fn data_that_vanish_end_the_run_where_it_can_go_on_when_they_are_back() {
    let workspace = Workspace::new();
    let options = "--steps 24 --set data.cache_mib=0";
    workspace.run("train all tiny.toml --data data --out reference --steps 24");
    let mut child = train(&workspace, "run", options);
    await_steps(&workspace, &mut child, "run/stage1", 3);
    fs::rename(workspace.path("data"), workspace.path("gone")).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = support::stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("data") && stderr.contains("help:"),
        "{stderr}"
    );

    fs::rename(workspace.path("gone"), workspace.path("data")).unwrap();
    let output = train(&workspace, "run", options)
        .wait_with_output()
        .unwrap();
    let stderr = support::stderr(&output);
    support::succeeded(output);
    assert!(stderr.contains("going on from step"), "{stderr}");
    let [mut found, mut expected] = ["run", "reference"].map(|run| result(&workspace, run));
    // A validation of when the held-out pictures were gone as well has no figure.
    for files in [&mut found, &mut expected] {
        files.remove("stage1/metrics.jsonl").unwrap();
    }
    assert_same(&found, &expected);
}

/// The variable that puts `faults.c` before the C library.
fn preloaded() -> (&'static str, String) {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        let library = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("faults.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/support/faults.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .args([source, "-ldl"])
            .status()
            .expect("cc, which links Rust programs, is there");
        assert!(compiled.success());
        library
    });
    ("LD_PRELOAD", library.display().to_string())
}

/// Waits until a stage has logged `count` steps.
fn await_steps(workspace: &Workspace, child: &mut Child, stage: &str, count: usize) {
    let metrics = workspace.path(stage).join("metrics.jsonl");
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < count {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// What the program says until a line has `words` in it.
fn said_until(child: &mut Child, words: &str) -> String {
    let mut said = String::new();
    let mut stderr = BufReader::new(child.stderr.as_mut().expect("it is piped"));
    while !said.contains(words) {
        let read = stderr.read_line(&mut said).unwrap();
        assert!(read > 0, "it ended without {words:?}:\n{said}");
    }
    said
}
