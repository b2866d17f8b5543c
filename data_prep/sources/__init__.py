"""Raw sources, one file each: every source yields `Post`; the table of them is `table.SOURCES`."""
