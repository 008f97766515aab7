//! One run on several devices of one process, of which the CPU serves as any number.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    process::Output,
    time::{Duration, Instant},
};

use safetensors::SafeTensors;
use support::{
    Workspace,
    refusals::{case, check, refused},
    runs::{assert_no_leftovers, assert_same, result, train, train_with},
    stderr, succeeded, vq_config,
};

/// Halves the work of a device, so that two make the steps of [`CONFIG`].
const HALF: &str =
    "--device flex,flex --set stage1.training.accumulation=1 --set stage2.training.accumulation=1";
/// Relative L2 difference that different orders of additions may make.
const TOLERANCE: f64 = 1e-5;

/// Weights and averages of a run's last checkpoints, by file and name.
///
/// The running statistics of a batch norm are those of the first device alone. Softmax ignores a bias of the keys, whose gradient is
/// nothing but rounding, which Adam makes as large as any other.
fn weights(workspace: &Workspace, run: &str) -> BTreeMap<String, Vec<f32>> {
    let mut weights = BTreeMap::new();
    for (file, content) in result(workspace, run) {
        if !file.contains("/checkpoints/") || file.contains("optimizer") {
            continue;
        }
        for (name, tensor) in SafeTensors::deserialize(&content).unwrap().tensors() {
            if name.contains("running") || name.ends_with("to_k.bias") {
                continue;
            }
            let values = tensor.data().as_chunks::<4>().0.iter();
            let values = values.map(|bytes| f32::from_le_bytes(*bytes)).collect();
            weights.insert(format!("{file} {name}"), values);
        }
    }
    assert!(weights.len() > 100, "{}", weights.len());
    weights
}

#[track_caller]
fn assert_close(workspace: &Workspace, found: &str, expected: &str) {
    let (found, expected) = (weights(workspace, found), weights(workspace, expected));
    assert!(found.keys().eq(expected.keys()));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let worst = (found.iter().zip(expected.values()))
        .map(|((name, found), expected)| {
            let pairs = found.iter().zip(expected);
            let difference = norm(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
            let size = norm(&mut expected.iter().map(|x| f64::from(*x)));
            (difference / size.max(f64::MIN_POSITIVE), name)
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap();
    println!(
        "largest relative difference: {:.1e} of {}",
        worst.0, worst.1
    );
    assert!(worst.0 <= TOLERANCE, "{worst:?}");
}

#[test]
fn two_devices_train_what_one_does_that_accumulates_twice_as_much() {
    let workspace = Workspace::new();
    workspace.run("train all tiny.toml --data data --out one");
    let output = workspace.output(&format!("train all tiny.toml --data data --out two {HALF}"));
    let said = stderr(&output);
    succeeded(output);
    assert!(said.contains("2 devices x 1 x 2 images"), "{said}");
    let hardware = fs::read_to_string(workspace.path("two/hardware.json")).unwrap();
    assert!(hardware.contains("\"flex,flex\""), "{hardware}");
    assert_close(&workspace, "two", "one");
    assert_no_leftovers(&workspace, "two");
    // Only the first draws, logs and writes: the same files, with a line for each step.
    assert!(
        result(&workspace, "two")
            .keys()
            .eq(result(&workspace, "one").keys())
    );
    for stage in ["stage1", "stage2"] {
        let metrics = fs::read_to_string(workspace.path("two").join(stage).join("metrics.jsonl"));
        assert_eq!(metrics.unwrap().lines().count(), 8);
    }

    workspace.run(&format!(
        "train all tiny.toml --data data --out again {HALF}"
    ));
    assert_same(&result(&workspace, "again"), &result(&workspace, "two"));
}

#[test]
fn a_run_goes_on_with_another_number_of_devices() {
    let workspace = Workspace::new();
    workspace.run("train all tiny.toml --data data --out one");
    // Killed in the middle of each stage, since a schedule depends on the number of steps.
    for (name, first, second) in [("two-one", HALF, ""), ("one-two", "", HALF)] {
        for (stage, options) in [("stage1", first), ("stage2", second)] {
            let mut child = train(&workspace, name, options);
            let checkpoint = workspace.path(&format!("{name}/{stage}/checkpoints/step-00000004"));
            while !checkpoint.exists() {
                assert!(child.try_wait().unwrap().is_none(), "it ended too early");
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let output = train(&workspace, name, first).wait_with_output().unwrap();
        assert!(stderr(&output).contains("going on from step"));
        succeeded(output);
        assert_close(&workspace, name, "one");
        assert_no_leftovers(&workspace, name);
    }
}

/// Whether it failed, in bounded time, with one error that has `words`.
#[track_caller]
fn failed(output: &Output, began: Instant, words: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert!(said.contains(words), "{said}");
    assert!(began.elapsed() < Duration::from_secs(60), "{said}");
}

#[test]
fn data_that_vanish_end_the_run_of_all_devices_where_it_can_go_on() {
    let workspace = Workspace::new();
    let options = format!("{HALF} --steps 24 --set data.cache_mib=0");
    workspace.run(&format!(
        "train all tiny.toml --data data --out reference {options}"
    ));
    // No checkpoint but that at the end would be due.
    let rare = format!("{options} --set stage1.training.checkpoint_every=100");
    let mut child = train(&workspace, "run", &rare);
    let metrics = workspace.path("run/stage1/metrics.jsonl");
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        std::thread::sleep(Duration::from_millis(2));
    }
    fs::rename(workspace.path("data"), workspace.path("gone")).unwrap();
    let began = Instant::now();
    let output = child.wait_with_output().unwrap();
    failed(&output, began, "data");
    assert!(stderr(&output).contains("help:"), "{}", stderr(&output));

    fs::rename(workspace.path("gone"), workspace.path("data")).unwrap();
    let output = train(&workspace, "run", &options)
        .wait_with_output()
        .unwrap();
    let said = stderr(&output);
    succeeded(output);
    // Whichever of the two found out first: the other one's step was given up, and what was reached before was kept.
    assert!(said.contains("going on from step"), "{said}");
    let [mut found, mut expected] = ["run", "reference"].map(|run| result(&workspace, run));
    // A validation of when the held-out pictures were gone as well has no figure.
    for files in [&mut found, &mut expected] {
        files.remove("stage1/metrics.jsonl").unwrap();
    }
    assert_same(&found, &expected);
}

#[test]
fn a_picture_that_one_device_refuses_ends_all() {
    let workspace = Workspace::new();
    for number in 0..10 {
        fs::write(workspace.path(&format!("data/{number}.png")), "text").unwrap();
        let options = "--device flex,flex,flex --set data.strict=true";
        let began = Instant::now();
        let run = format!("run-{number}");
        let output = train(&workspace, &run, options).wait_with_output().unwrap();
        failed(&output, began, &format!("{number}.png"));
        support::write_pictures(&workspace.path("data"), 10);
    }
}

#[test]
fn a_damaged_picture_is_named_once_whichever_devices_come_across_it() {
    let workspace = Workspace::new();
    for number in [1, 4] {
        fs::write(workspace.path(&format!("data/{number}.png")), "text").unwrap();
    }
    let output = workspace.output("train vae tiny.toml --data data --out run --device flex,flex");
    let said = stderr(&output);
    succeeded(output);
    for number in [1, 4] {
        let name = format!("{number}.png");
        assert_eq!(said.matches(&name).count(), 1, "{said}");
        let listed = fs::read_to_string(workspace.path("run/damaged.txt")).unwrap();
        assert_eq!(listed.matches(&name).count(), 1, "{listed}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_all_devices_after_the_step() {
    let workspace = Workspace::new();
    let options = format!("{HALF} --steps 1000");
    let mut child = train(&workspace, "run", &options);
    let metrics = workspace.path("run/stage1/metrics.jsonl");
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = child.id().to_string();
    let mut kill = std::process::Command::new("kill");
    assert!(kill.args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = stderr(&output);
    let printed = succeeded(output);
    assert_eq!(
        said.matches("stopping after this step").count(),
        1,
        "{said}"
    );
    assert_eq!(printed.matches("stopped after").count(), 1, "{printed}");
    assert_no_leftovers(&workspace, "run");
}

#[test]
fn wrong_lists_and_what_needs_one_device() {
    let workspace = Workspace::new();
    workspace.write("vq.toml", vq_config());
    for (list, culprit) in [
        ("flex,", "'flex,' for '--device"),
        (",flex", "',flex' for '--device"),
        ("flex,,flex", "no device at one side of a comma"),
        ("flex,abacus", "abacus: there is no such device"),
        ("flex,rocm", "--features rocm"),
        ("flex,flex:1", "flex:1: flex has no numbered devices"),
    ] {
        let arguments = format!("train all tiny.toml --data data --out run --device {list}");
        refused(&workspace, &arguments, 2, culprit);
    }
    let several = "only `ldm train` takes several devices";
    refused(
        &workspace,
        "sample cat --model m --device flex,flex",
        2,
        several,
    );
    refused(&workspace, "plan tiny.toml --device flex,flex", 2, several);
    check(
        &workspace,
        &[
            case(
                "train vae vq.toml --data data --out run --device flex,flex --set stage1.revive_codes_after=5",
                "`stage1.revive_codes_after`",
                "one process on one device",
            ),
            case(
                "train vae none.toml --device flex,flex",
                "none.toml",
                "configs/",
            ),
        ],
    );
}

/// MPI is only told of by the variables of its launcher, which a build without it refuses in any case.
#[test]
fn several_devices_in_one_of_several_processes() {
    let workspace = Workspace::new();
    let variables = [("OMPI_COMM_WORLD_SIZE", "2".to_owned())];
    let child = train_with(&workspace, "run", "--device flex,flex", &variables);
    let began = Instant::now();
    failed(
        &child.wait_with_output().unwrap(),
        began,
        "several processes",
    );
    assert!(!workspace.path("run").exists());
}
