"""One page of HTML that tells what was attributed: data, charts, template."""
