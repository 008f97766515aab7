//! A run that is interrupted and resumed ends with the same bytes as one that never was.

mod support;

use std::{
    fs,
    process::Child,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use support::{
    CONFIG, Workspace,
    runs::{assert_no_leftovers, assert_same, result, train},
    write_pictures,
};

/// Kills, unless `LDM_TEST_KILLS` says otherwise.
const KILLS: usize = 10;

#[test]
fn killed_at_any_moment_training_goes_on_as_if_nothing_had_happened() {
    let workspace = Workspace::new();
    let began = Instant::now();
    workspace.run("train all tiny.toml --data data --out reference");
    let duration = began.elapsed();
    let expected = result(&workspace, "reference");

    let wanted = std::env::var("LDM_TEST_KILLS").map_or(KILLS, |kills| {
        kills.parse().expect("LDM_TEST_KILLS is a number")
    });
    let mut random = Random::from_clock();
    let mut kills = 0;
    for number in 0.. {
        let run = format!("run-{number}");
        let mut sessions = 0;
        loop {
            let mut child = train(&workspace, &run, "");
            // A third of a run's time at most: progress is made, but never all of it in one go.
            let moment = duration.mul_f64(random.next() / 3.0);
            if sessions < KILLS && finished_within(&mut child, moment).is_none() {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                sessions += 1;
                println!("{run}: killed after {moment:?}");
                continue;
            }
            let output = child.wait_with_output().unwrap();
            support::succeeded(output);
            break;
        }
        assert_same(&result(&workspace, &run), &expected);
        assert_no_leftovers(&workspace, &run);
        if kills >= wanted {
            break;
        }
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_finishes_the_step_and_says_how_to_go_on() {
    let workspace = Workspace::new();
    let steps = "--steps 24";
    workspace.run(&format!(
        "train all tiny.toml --data data --out reference {steps}"
    ));

    let child = train(&workspace, "run", steps);
    let stopped_at = interrupt_after(&workspace, child, "run/stage1", 3);
    assert!((3..24).contains(&stopped_at), "{stopped_at}");
    // With another number of threads that read the data.
    let child = train(&workspace, "run", &format!("{steps} --set data.workers=3"));
    let stopped_at = interrupt_after(&workspace, child, "run/stage2", 3);
    assert!((3..24).contains(&stopped_at), "{stopped_at}");
    workspace.run(&format!(
        "train all tiny.toml --data data --out run --resume {steps} --set data.workers=1"
    ));
    assert_same(&result(&workspace, "run"), &result(&workspace, "reference"));
}

#[cfg(unix)]
#[test]
fn images_of_several_shapes_come_in_the_same_order_after_an_interruption() {
    let workspace = Workspace::empty();
    write_pictures(&workspace.path("data"), 10);
    for (number, width, height) in [
        (1, 64, 40),
        (2, 30, 60),
        (5, 90, 50),
        (6, 55, 36),
        (8, 36, 64),
    ] {
        let path = workspace.path(&format!("data/{number}.png"));
        let picture = image::open(&path).unwrap().into_rgb8();
        let resized = image::imageops::thumbnail(&picture, width, height);
        resized.save(path).unwrap();
    }
    let buckets = "resolution = 32\nbuckets = [[32, 32], [48, 32], [32, 48]]";
    workspace.write("tiny.toml", CONFIG.replace("resolution = 32", buckets));
    let steps = "--steps 24";
    workspace.run(&format!(
        "train all tiny.toml --data data --out reference {steps}"
    ));

    let child = train(&workspace, "run", steps);
    let stopped_at = interrupt_after(&workspace, child, "run/stage1", 4);
    assert!((4..24).contains(&stopped_at), "{stopped_at}");
    let child = train(&workspace, "run", &format!("{steps} --set data.workers=3"));
    let stopped_at = interrupt_after(&workspace, child, "run/stage2", 4);
    assert!((4..24).contains(&stopped_at), "{stopped_at}");
    workspace.run(&format!(
        "train all tiny.toml --data data --out run --resume {steps} --set data.workers=1"
    ));
    assert_same(&result(&workspace, "run"), &result(&workspace, "reference"));

    // What was trained at several sizes is drawn at any.
    workspace.run("sample cat --model run --steps 2 --width 48 --height 32 --out wide.png");
    let wide = image::open(workspace.path("wide.png")).unwrap();
    assert_eq!([wide.width(), wide.height()], [48, 32]);
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let workspace = Workspace::new();
    let command = "train all tiny.toml --data data --out run --steps 3";
    workspace.run(command);
    let before = result(&workspace, "run");
    workspace.run(&format!("{command} --resume"));
    assert_same(&result(&workspace, "run"), &before);
}

#[test]
fn what_a_killed_process_was_writing_is_removed() {
    let workspace = Workspace::new();
    let command = "train all tiny.toml --data data --out run";
    workspace.run(&format!("{command} --steps 1"));
    for name in [
        ".model.partial-77/unet/config.json",
        ".config.toml.partial-77",
        "stage1/.metrics.jsonl.partial-77",
        "stage1/samples/.step-00000002.png.partial-77",
        "stage1/checkpoints/.step-00000002.partial-77/vae.safetensors",
        "stage2/.latents.safetensors.partial-77",
        "stage2/samples/.step-00000002.png.partial-77",
        "stage2/checkpoints/.step-00000002.partial-77/state.json",
    ] {
        workspace.write(&format!("run/{name}"), "half");
    }
    // One more step of stage 1 makes other latents.
    workspace.run(&format!(
        "{command} --steps 2 --resume --set data.latent_cache=rebuild"
    ));
    assert_no_leftovers(&workspace, "run");
}

#[test]
fn what_was_trained_but_not_yet_exported_is_exported() {
    let workspace = Workspace::new();
    let command = "train vae tiny.toml --data data --out run";
    workspace.run(&format!("{command} --steps 3"));
    let old_model = workspace.files("run/model");
    workspace.run(&format!("{command} --steps 6 --resume"));
    let expected = workspace.files("run/model");
    assert_ne!(old_model, expected);

    // As if the process had been killed between the last checkpoint and the export.
    for (name, content) in &old_model {
        workspace.write(&format!("run/model/{name}"), content);
    }
    workspace.run(&format!("{command} --steps 6 --resume"));
    assert_same(&workspace.files("run/model"), &expected);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_used() {
    let workspace = Workspace::new();
    let command = "train vae tiny.toml --data data --out run";
    workspace.run(command);
    let expected = result(&workspace, "run");

    let checkpoints = workspace.path("run/stage1/checkpoints");
    let newest = checkpoints.join("step-00000008/vae.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&newest, bytes).unwrap();
    let output = workspace.output(&format!("{command} --resume"));
    let stderr = support::stderr(&output);
    support::succeeded(output);
    assert!(
        stderr.contains("step-00000008") && stderr.contains("checksum"),
        "{stderr}"
    );
    assert_same(&result(&workspace, "run"), &expected);
}

/// Sends Ctrl-C once a stage has logged `count` steps; the step of the checkpoint that it leaves.
#[cfg(unix)]
fn interrupt_after(workspace: &Workspace, mut child: Child, stage: &str, count: usize) -> u64 {
    let metrics = workspace.path(stage).join("metrics.jsonl");
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < count {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it could be interrupted"
        );
        sleep(Duration::from_millis(2));
    }
    let pid = child.id().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let stdout = support::succeeded(output);
    assert!(
        stdout.contains("stopped after") && stdout.contains("--resume"),
        "{stdout}"
    );

    let logged = fs::read_to_string(&metrics).unwrap().lines().count() as u64;
    let checkpoint = format!("checkpoints/step-{logged:08}/state.json");
    assert!(
        workspace.path(stage).join(&checkpoint).is_file(),
        "no {checkpoint}"
    );
    logged
}

/// Waits for a process, but not longer than `time`.
fn finished_within(child: &mut Child, time: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + time;
    loop {
        let status = child.try_wait().unwrap();
        if status.is_some() || Instant::now() >= deadline {
            return status;
        }
        sleep(Duration::from_millis(2));
    }
}

/// Other moments each time; a failure can be repeated, as far as the machine does, with the seed that it printed.
struct Random(u64);

impl Random {
    fn from_clock() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("the clock is past 1970");
        let seed = match std::env::var("LDM_TEST_SEED") {
            Ok(seed) => seed.parse().expect("LDM_TEST_SEED is a number"),
            Err(_) => u64::from(now.subsec_nanos()),
        };
        println!("moments drawn with LDM_TEST_SEED={seed}");
        Self(seed)
    }

    /// In [0, 1): SplitMix64.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
