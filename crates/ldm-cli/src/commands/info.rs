use ldm_pipeline::{Error, info};

use crate::{args::InfoArgs, output::print};

pub(crate) fn run(args: InfoArgs) -> Result<(), Error> {
    print(info::describe(&args.path)?.trim_end())
}
