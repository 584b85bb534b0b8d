"""The software CPU: Unicorn, with what Linux needs added."""
