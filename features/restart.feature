Feature: What was accepted outlives the daemon

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms

  @ORCHD-CLI-4 @ORCHD-DUR-2
  Scenario: SIGTERM in the middle of a stream: it closes, and the task goes on after the next start
    Given the setting "shutdown.drain_deadline_ms" is 50
    And the pool "words" is ready
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 60               |
      | seed       | 7                |
    And "story" has received 2 tokens
    And the daemon is stopped
    Then the stream "story" asked to come back after 1000 ms and told no end
    When the daemon starts again
    And alice watches "story" as "rest" from where "story" stopped
    Then the answer is 200
    And "story" and then "rest" are one whole stream of 60 tokens
    When alice watches "story" as "replay"
    Then the stream "replay" ends with end
    When alice asks for "/v1/tasks"
    Then the answer lists "story"

  @ORCHD-DUR-2 @ORCHD-ADM-2
  Scenario: What waited keeps its order behind what ran
    Given the pool "words" is ready
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits "b1" of priority batch
    And alice submits "i1" of priority interactive
    And alice submits "b2" of priority batch
    And alice submits "i2" of priority interactive
    And the daemon is stopped
    And the daemon starts again
    And "running" is running
    Then "i2" has the record:
      | queue_position | 1 |
    And "b2" has the record:
      | queue_position | 3 |
    When alice cancels "running"
    Then they started in the order "i1", "i2", "b1", "b2"

  @ORCHD-DUR-1 @ORCHD-DUR-2
  Scenario: kill -9 right after the answer loses nothing and doubles nothing
    Given the daemon runs as a process of its own
    And the pool "words" is ready
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 20               |
    And alice submits "waiting":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    And the daemon is killed
    And the daemon starts again
    Then "running" is done
    And "waiting" is done
    When alice asks for "/v1/tasks"
    Then the answer lists "waiting", "running"
    When alice watches "waiting" as "replay"
    Then the stream "replay" ends with end

  @ORCHD-DUR-4 @ORCHD-ATT-2
  Scenario: kill -9 in the middle of a stream: its frames are the same, and it goes on behind them
    Given the daemon runs as a process of its own
    And the pool "words" is ready
    When alice submits and streams "story":
      | prompt      | Once upon a time |
      | max_tokens  | 60               |
      | sampling    | {"temperature":0} |
    And "story" has received 20 tokens
    And the daemon is killed
    And the daemon starts again
    And alice watches "story" as "rest" from where "story" stopped
    Then "story" and then "rest" are one whole stream of 60 tokens
    When alice watches "story" as "replay"
    Then the stream "replay" ends with end
    And the end event of "replay" says:
      | tokens_out    | 60         |
      | continuations | 1          |
      | exact         | unverified |

  @ORCHD-DUR-2 @ORCHD-SESS-1 @ORCHD-BUDG-2
  Scenario: Sessions and budgets go on
    Given bob may spend 200 tokens in 2678400000 ms
    And the pool "words" is ready
    When bob submits "first" in the session "chat" with:
      | max_tokens | 10             |
      | budget     | {"tokens":100} |
    And "first" is done
    And the daemon is stopped
    And the daemon starts again
    And bob reads the session "chat"
    Then the answer says:
      | turns                   | 1  |
      | tokens_budget_remaining | 85 |
    When alice reads the session "chat"
    Then the answer is 404 NOT_FOUND
    When bob submits "second" in the session "another chat" with:
      | max_tokens | 10 |
    Then the header "X-Budget-Tokens-Remaining" is at most 170

  @ORCHD-DUR-2 @ORCHD-TASK-7
  Scenario: How a task ended is still told
    When alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    And "story" is done
    And the daemon is stopped
    And the daemon starts again
    Then "story" has the record:
      | state         | done   |
      | tokens_out    | 3      |
      | attempts      | 1      |
      | finish_reason | length |
    When bob reads "story"
    Then the answer is 404 NOT_FOUND
    When alice cancels "story"
    Then the answer is 204

  @ORCHD-DUR-3
  Scenario: A damaged database is refused by its name and left as it is
    Given alice submits "story":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    And the daemon is stopped
    And the database is damaged
    Then the daemon does not start, and names the database
    And the database is as it was
