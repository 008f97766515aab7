//! What `ldm sample` offers beyond one image of one prompt: several subjects and seeds, sheets, moving pictures, ways from one image to
//! another, and the model that comes with the program.

mod support;

use std::{
    fs::{self, File},
    io::BufReader,
};

use image::{
    AnimationDecoder, DynamicImage, RgbImage,
    codecs::{gif::GifDecoder, webp::WebPDecoder},
};
use serde_json::json;
use support::{
    Workspace, copy_folder,
    pictures::{assert_alike, picture, record, with_model},
    refusals::{error_text, refused_naming},
    stderr, succeeded,
};

/// The pictures of an animation.
fn frames(workspace: &Workspace, name: &str) -> Vec<RgbImage> {
    let file = BufReader::new(File::open(workspace.path(name)).unwrap());
    let frames = if name.ends_with("gif") {
        GifDecoder::new(file).unwrap().into_frames()
    } else {
        WebPDecoder::new(file).unwrap().into_frames()
    };
    frames
        .map(|frame| DynamicImage::ImageRgba8(frame.unwrap().into_buffer()).into_rgb8())
        .collect()
}

#[test]
fn prompts_and_seeds_are_drawn_together_as_alone() {
    let workspace = with_model("text-kl-f8");
    workspace.write("prompts.txt", "# two of them\nred heart\n\n  blue apple\n");
    // A stochastic sampler has noise at its steps as well.
    let options = "--model m --sampler ddpm --steps 3";
    let stdout = workspace.run(&format!(
        "sample --prompts prompts.txt --seeds 5,9 {options} --batch 3 --out all.png"
    ));
    assert_eq!(
        stdout.lines().collect::<Vec<_>>(),
        ["all-0.png", "all-1.png", "all-2.png", "all-3.png"]
    );
    let expected = [
        ("red heart", 5),
        ("red heart", 9),
        ("blue apple", 5),
        ("blue apple", 9),
    ];
    for (index, (prompt, seed)) in expected.into_iter().enumerate() {
        let name = format!("all-{index}.png");
        let found = record(&workspace, &name);
        assert_eq!(
            [&found["prompt"], &found["seed"], &found["image"]],
            [&json!(prompt), &json!(seed), &json!(0)]
        );
        let options = format!("sample {options} --seed {seed} --out alone.png");
        let alone = workspace.command(&options).arg(prompt).output().unwrap();
        succeeded(alone);
        let [together, alone] = [&name, "alone.png"].map(|name| picture(&workspace, name));
        assert_alike(&together, &alone, &name);
    }
    let all: Vec<RgbImage> = (0..4)
        .map(|index| picture(&workspace, &format!("all-{index}.png")))
        .collect();
    assert!(
        all[0] != all[1] && all[0] != all[2],
        "nothing has an effect"
    );

    let spaced = workspace
        .command_of(&["sample", "red heart", "--seeds", "5, 9", "--out", "5.png"])
        .args(options.split_whitespace())
        .output()
        .unwrap();
    succeeded(spaced);
    assert_alike(&picture(&workspace, "5-1.png"), &all[1], "5-1.png");

    // Without a list of seeds each prompt has all images of the one.
    workspace.run(&format!(
        "sample --prompts prompts.txt --seed 5 --count 2 {options} --out counted.png"
    ));
    let found = record(&workspace, "counted-3.png");
    assert_eq!(
        [&found["prompt"], &found["seed"], &found["image"]],
        [&json!("blue apple"), &json!(5), &json!(1)]
    );
    assert_alike(
        &picture(&workspace, "counted-2.png"),
        &all[2],
        "counted-2.png",
    );
}

#[test]
fn a_grid_holds_all_images_with_captions() {
    let workspace = with_model("text-kl-f8");
    workspace.run("sample heart --model m --steps 2 --grid 3x2 --out sheet.png");
    assert_eq!(
        workspace
            .files("")
            .keys()
            .filter(|name| name.ends_with("png"))
            .count(),
        1,
        "a sheet is written in place of the images"
    );
    let sheet = picture(&workspace, "sheet.png");
    let found = record(&workspace, "sheet.png");
    let images = found["images"].as_array().unwrap();
    assert_eq!(images.len(), 6);
    assert_eq!(images[4]["prompt"], "heart");
    assert_eq!(images[4]["image"], 4);
    assert_eq!(found["steps"], 2);

    workspace.run("sample heart --model m --steps 2 --count 6 --grid --each --out both.png");
    // As square as can be, which six are at three by two.
    assert_eq!(picture(&workspace, "both.png"), sheet);
    // The second of the first row, enlarged from 64 to 128 pixels: 16 to the edge, 12 between two.
    let second = picture(&workspace, "both-1.png");
    for (x, y) in [(0, 0), (63, 63), (20, 41)] {
        let shown = sheet.get_pixel(16 + 128 + 12 + 2 * x, 16 + 2 * y);
        assert_eq!(shown, second.get_pixel(x, y), "{x}, {y}");
    }
    assert_eq!(record(&workspace, "both-1.png")["image"], 1);

    // A row for each of several prompts.
    workspace.write("prompts.txt", "red heart\nblue apple\n");
    workspace.run(
        "sample --prompts prompts.txt --model m --steps 1 --seeds 1,2,3 --out rows.png --grid",
    );
    assert_eq!(picture(&workspace, "rows.png").width(), sheet.width());

    let bad = "sample --prompts prompts.txt --model m --steps 1 --grid";
    refused_naming(&workspace, &format!("{bad} 3x1"), 1, &["3 x 1", "--count"]);
    let many = format!("{bad} 3x1 --count 2");
    refused_naming(&workspace, &many, 1, &["4 images", "3 x 1"]);
    // Found out before so many are thought of.
    let huge = "sample heart --model m --grid 100000x100000";
    refused_naming(&workspace, huge, 1, &["10000000000 images", "at most"]);
    refused_naming(
        &workspace,
        "sample --grid heart",
        2,
        &["COLSxROWS", "before"],
    );
}

#[test]
fn the_way_of_an_image_is_a_moving_picture() {
    let workspace = with_model("text-kl-f8");
    let options = "sample heart --model m --steps 10 --sampler ddim";
    let stdout = workspace.run(&format!(
        "{options} --animate new/way.webp --animate-every 3 --out end.png"
    ));
    assert_eq!(
        stdout.lines().collect::<Vec<_>>(),
        ["end.png", "new/way.webp"]
    );
    let way = frames(&workspace, "new/way.webp");
    assert_eq!(way.len(), 4, "after 3, 6 and 9 steps, and the end");
    let end = picture(&workspace, "end.png");
    assert_eq!(way[3], end);
    assert!(way[0] != way[1] && way[1] != way[2]);
    // Watching changes nothing.
    workspace.run(&format!("{options} --out unwatched.png"));
    assert_eq!(picture(&workspace, "unwatched.png"), end);

    // Several images go side by side, from several batches.
    workspace.run(&format!(
        "{options} --count 3 --batch 2 --animate way.gif --grid 3x1 --out sheet.png"
    ));
    let way = frames(&workspace, "way.gif");
    assert_eq!(way.len(), 10);
    let sheet = picture(&workspace, "sheet.png");
    assert!(
        way.iter()
            .all(|frame| frame.dimensions() == sheet.dimensions())
    );

    for (arguments, status, expected) in [
        ("--animate way.mp4", 1, &["way.mp4", "sample.gif"][..]),
        ("--animate m", 1, &["--animate"]),
        ("--animate-every 2", 2, &["--animate"]),
        (
            "--animate way.gif --count 100000",
            1,
            &["too many for one picture", "--animate"],
        ),
        (
            "--animate way.gif --steps 1000 --width 512 --height 512 --count 2",
            1,
            &["--animate-every"],
        ),
    ] {
        let arguments = format!("sample heart --model m {arguments} --out new-folder/no.png");
        refused_naming(&workspace, &arguments, status, expected);
    }
}

#[test]
fn a_sheet_may_be_wider_than_a_moving_picture() {
    let workspace = with_model("text-kl-f8");
    // 120 of 128 pixels and the gaps between them are more than the 16384 of WebP.
    let options = "--model m --steps 1 --grid 120x1 --out sheet.png --animate wide.webp";
    refused_naming(
        &workspace,
        &format!("sample heart --count 120 {options}"),
        1,
        &["too many for a picture of this animation", "smaller"],
    );
    // The way of an interpolation shows one image after the other.
    workspace.run(&format!(
        "sample heart --seeds 1,2 --interpolate 120 {options}"
    ));
    assert!(picture(&workspace, "sheet.png").width() > 1 << 14);
    assert_eq!(frames(&workspace, "wide.webp").len(), 120);
}

#[test]
fn an_interpolation_leads_from_one_image_to_the_other() {
    let workspace = with_model("text-kl-f8");
    let options = "--model m --steps 3 --sampler ddpm";
    let ends = |way: &str, last: usize, first_alone: &str, last_alone: &str| {
        for (index, alone) in [(0, first_alone), (last, last_alone)] {
            workspace.run(&format!("sample {alone} {options} --out alone.png"));
            let what = format!("{way}-{index}.png");
            assert_alike(
                &picture(&workspace, &what),
                &picture(&workspace, "alone.png"),
                &what,
            );
        }
        let middle = picture(&workspace, &format!("{way}-{}.png", last / 2));
        for end in [0, last] {
            let end = picture(&workspace, &format!("{way}-{end}.png"));
            assert_ne!(middle, end, "{way}: nothing is between");
        }
    };

    let stdout = workspace.run(&format!(
        "sample heart {options} --seeds 1,2 --interpolate 5 --animate way.gif --out seeds.png"
    ));
    assert_eq!(stdout.lines().count(), 6, "{stdout}");
    ends("seeds", 4, "heart --seed 1", "heart --seed 2");
    assert_eq!(frames(&workspace, "way.gif").len(), 5);
    let found = record(&workspace, "seeds-1.png");
    assert_eq!([&found["seed"], &found["share"]], [&json!(1), &json!(0.25)]);
    assert_eq!(found["to"], json!({"seed": 2, "image": 0}));

    workspace.run(&format!(
        "sample heart --to apple {options} --seed 4 --interpolate 3 --batch 2 --out prompts.png"
    ));
    ends("prompts", 2, "heart --seed 4", "apple --seed 4");
    let found = record(&workspace, "prompts-1.png");
    assert_eq!(
        [&found["prompt"], &found["share"]],
        [&json!("heart"), &json!(0.5)]
    );
    assert_eq!(found["to"], json!({"prompt": "apple"}));

    workspace.write("prompts.txt", "heart\napple\n");
    workspace.run(&format!(
        "sample --prompts prompts.txt --seeds 1,2 {options} --interpolate 3 --out both.png"
    ));
    ends("both", 2, "heart --seed 1", "apple --seed 2");
    workspace.run(&format!(
        "sample heart --to apple {options} --interpolate 4 --out sheet.png --grid 4x1"
    ));
    assert_eq!(record(&workspace, "sheet.png")["images"][3]["share"], 1.0);

    workspace.write("three.txt", "heart\napple\nstar\n");
    for (arguments, status, expected) in [
        ("heart --interpolate 3", 2, "--seeds"),
        (
            "heart --interpolate 1 --seeds 1,2",
            2,
            "'1' for '--interpolate",
        ),
        ("heart --interpolate 3 --seeds 1,2 --count 2", 2, "--count"),
        ("heart --to apple", 2, "--interpolate"),
        ("--to apple --interpolate 3", 2, "PROMPT"),
        ("heart --interpolate 3 --seeds 1,2,3", 1, "no more than two"),
        ("--prompts three.txt --interpolate 3", 1, "no more than two"),
        ("heart --interpolate 3 --seeds 1", 1, "two --seeds"),
    ] {
        let arguments = format!("sample {arguments} --model m --out no.png");
        refused_naming(&workspace, &arguments, status, &[expected]);
    }
}

#[test]
fn without_a_model_the_one_that_comes_with_the_program_is_used() {
    let workspace = with_model("text-kl-f8");
    fs::create_dir(workspace.path("models")).unwrap();
    workspace.run("convert m models/twemoji-64 --half");
    let weights = |model: &str| {
        let path = format!("{model}/unet/diffusion_pytorch_model.safetensors");
        fs::read(workspace.path(&path)).unwrap()
    };
    let half = weights("models/twemoji-64");
    let tensors = safetensors::SafeTensors::deserialize(&half).unwrap();
    assert!((tensors.iter()).all(|(_, tensor)| tensor.dtype() == safetensors::Dtype::F16));
    assert!(half.len() < weights("m").len() * 6 / 10);

    let drawn = workspace
        .command_of(&["sample", "red heart", "--steps", "2"])
        .output()
        .unwrap();
    let said = stderr(&drawn);
    succeeded(drawn);
    assert!(
        said.contains("twemoji-64") && said.contains("--model"),
        "{said}"
    );
    assert_eq!(record(&workspace, "sample.png")["model"], "twemoji-64");
    let named = workspace
        .command_of(&[
            "sample",
            "red heart",
            "--steps",
            "2",
            "--model",
            "models/twemoji-64",
            "--out",
            "named.png",
        ])
        .output()
        .unwrap();
    assert!(!stderr(&named).contains("twemoji-64"));
    succeeded(named);
    assert_eq!(
        picture(&workspace, "sample.png"),
        picture(&workspace, "named.png")
    );

    // Elsewhere, where a variable says.
    copy_folder(&workspace.path("models"), &workspace.path("other"));
    let elsewhere = |folder: &str| {
        workspace
            .command("sample heart --steps 1 --out elsewhere.png")
            .env("LDM_MODELS", folder)
            .output()
            .unwrap()
    };
    let drawn = elsewhere("other");
    assert!(stderr(&drawn).contains("other/twemoji-64"));
    succeeded(drawn);
    let said = error_text(&elsewhere("nowhere"), 1);
    for expected in ["nowhere/twemoji-64", "--model", "LDM_MODELS"] {
        assert!(said.contains(expected), "{said}");
    }
    // An empty variable is none.
    assert!(stderr(&elsewhere("")).contains("models/twemoji-64"));
    refused_naming(&workspace, "sample heart --yaml m.yaml", 2, &["--model"]);
}
