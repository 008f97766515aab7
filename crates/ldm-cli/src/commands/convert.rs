use ldm_pipeline::{Error, model::convert};

use crate::{args::ConvertArgs, output::print};

/// Names of skipped tensors that are listed; the rest is counted.
const NAMES_SHOWN: usize = 8;

pub(crate) fn run(args: ConvertArgs) -> Result<(), Error> {
    let skipped = convert(
        &args.source,
        args.yaml.as_deref(),
        &args.destination,
        args.half,
    )?;
    print(format_args!("{}", args.destination.display()))?;
    if !skipped.is_empty() {
        let shown = skipped[..skipped.len().min(NAMES_SHOWN)].join(", ");
        let more = skipped.len().saturating_sub(NAMES_SHOWN);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        print(format_args!(
            "not needed for sampling, left out: {shown}{more}"
        ))?;
    }
    Ok(())
}
