//! `ldm report`: a page of a run that was trained, of one that is being trained, and what is refused.

mod support;

use std::{fs, process::Child, time::Duration};

use support::{
    Workspace,
    refusals::{assert_nothing_partial, case, check},
};

#[test]
fn a_trained_run_becomes_a_page() {
    let workspace = Workspace::new();
    workspace.run("train all tiny.toml --data data --out run --steps 6");
    let before = workspace.files("run");
    let hardware: serde_json::Value = serde_json::from_slice(&before["hardware.json"]).unwrap();
    assert_eq!(
        hardware.as_array().unwrap().len(),
        1,
        "one machine for both stages"
    );
    assert_eq!(hardware[0]["device"], "flex");
    assert!(hardware[0]["cores"].as_u64().unwrap() >= 1);
    let kernels = hardware[0]["kernels"].as_str().unwrap();
    assert!(workspace.run("devices").contains(kernels));

    assert_eq!(workspace.run("report run").trim(), "run/report.html");
    let mut after = workspace.files("run");
    let page = String::from_utf8(after.remove("report.html").unwrap()).unwrap();
    assert_eq!(after, before, "the run itself is as it was");
    assert_eq!(page.matches("pill finished").count(), 2);
    for expected in [
        "\"title\":\"Total loss\"",
        "\"title\":\"Adaptive weight\"",
        "\"title\":\"Loss\"",
        "Best PSNR",
        "step-00000006",
        "block_out_channels",
        kernels,
    ] {
        assert!(page.contains(expected), "no {expected}");
    }
    // Sheets after steps 5 and 6 of both stages, each once.
    assert_eq!(page.matches("src=\"data:image/png;base64,").count(), 4);
    loads_nothing(&page);

    workspace.run("report run --out elsewhere.html");
    let elsewhere = fs::read_to_string(workspace.path("elsewhere.html")).unwrap();
    assert_eq!(elsewhere.len(), page.len());
    workspace.run("report run");
    assert_nothing_partial(&workspace, "run");
}

/// No attribute and no style refers to anything that isn't in the page.
fn loads_nothing(page: &str) {
    for attribute in [
        " src=\"",
        " href=\"",
        " srcset=\"",
        " action=\"",
        " poster=\"",
        " data=\"",
    ] {
        for (at, _) in page.match_indices(attribute) {
            let target = &page[at + attribute.len()..];
            assert!(
                target.starts_with("data:") || target.starts_with('#'),
                "{attribute}{}",
                &target[..target.len().min(60)]
            );
        }
    }
    for loader in [
        "@import",
        "url(http",
        "url(\"",
        "fetch(",
        "XMLHttpRequest",
        "import(",
        "WebSocket",
        "sendBeacon",
    ] {
        assert!(!page.contains(loader), "{loader}");
    }
    // Names of XML's vocabularies, which nothing loads.
    let rest = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!rest.contains("http://") && !rest.contains("https://"));
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn a_running_run_becomes_a_page() {
    let workspace = Workspace::new();
    let training = workspace
        .command("train vae tiny.toml --data data --out run --steps 100000")
        .spawn()
        .unwrap();
    let _guard = Killed(training);
    let metrics = workspace.path("run/stage1/metrics.jsonl");
    let lines = || {
        fs::read_to_string(&metrics)
            .unwrap_or_default()
            .lines()
            .count()
    };
    for _ in 0..1200 {
        if lines() >= 3 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(lines() >= 3, "no steps within a minute");
    for _ in 0..3 {
        workspace.run("report run");
        let page = fs::read_to_string(workspace.path("run/report.html")).unwrap();
        assert!(page.contains("pill running") && page.contains("Time left"));
        assert!(page.contains("\"title\":\"Total loss\""));
    }
}

/// A process that doesn't outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_no_run_is_refused() {
    let workspace = Workspace::new();
    workspace.write("run/config.toml", "seed = 1\n");
    workspace.write("folder/metrics.jsonl", "{\"step\":1,\"seconds\":1}\n");
    check(
        &workspace,
        &[
            case("report missing", "missing", "check the path"),
            case("report folder", "folder is no run", "--out"),
            case("report tiny.toml", "tiny.toml is no run", "--out"),
            case(
                "report run --out run/config.toml",
                "run/config.toml exists and is no report",
                "",
            ),
            case(
                "report run --out nowhere/report.html",
                "nowhere/report.html",
                "--out",
            ),
            case("report run --out folder", "folder", "--out"),
        ],
    );
}
