"""Raw sources, one file each: every source yields `Post`; the table of them is `data_prep.build.SOURCES`."""
