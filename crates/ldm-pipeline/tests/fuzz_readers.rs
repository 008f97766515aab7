//! Readers of foreign files survive damage: thousands of files, the same at every run.

mod fuzz;

#[global_allocator]
static ALLOCATOR: fuzz::Counting = fuzz::Counting;

const FILES: usize = 3_000;

#[test]
fn damaged_files_neither_panic_nor_exhaust_memory() {
    let dir = tempfile::tempdir().unwrap();
    for target in fuzz::targets(dir.path()) {
        for seed in &target.seeds {
            target.check(dir.path(), seed).unwrap();
        }
        let mut random = fuzz::Random(0x1dea);
        for file in 0..FILES {
            let content = fuzz::mutate(&mut random, &target.seeds);
            if let Err(problem) = target.check(dir.path(), &content) {
                panic!("file {file}: {problem}");
            }
        }
    }
}
